"""Options as events that exclude one another: which tokens the assistant must say for each.

In: the options of a question, and what turns a text into an answer's tokens. Out: tokens, none of which are the
beginning of another option's. Knows no engine, no HTTP and no request.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise

from softspec.errors import FieldError
from softspec.server.decisions.prompt import Option

AnswerIds = Callable[[str, bool], list[int]]
"""The tokens of an assistant's answer; with True also the one that ends its turn."""


def tokens_of(options: Sequence[Option], answer_ids: AnswerIds, place: str) -> list[list[int]]:
    """The tokens that stand for each option.

    An option counts as said once its own tokens are, whatever may follow. One that begins another option counts only
    with the end of the turn after it, as its own tokens alone are also the beginning of the other.

    Raises:
        FieldError: an option has no text, or is not to be told from another; `place` is the path of the question.
    """
    for option in options:
        if not option.text.strip():
            raise FieldError(_path(place, option), f"{_path(place, option)} has no text: expected some")
    tokens = [answer_ids(option.text, False) for option in options]
    for number in _beginnings(tokens):
        tokens[number] = answer_ids(options[number].text, True)
    for number in _beginnings(tokens):
        path = _path(place, options[number])
        raise FieldError(
            path,
            f"{path} is '{options[number].text}', which to the members is another option too: leave it out",
        )
    return tokens


def _beginnings(tokens: Sequence[Sequence[int]]) -> list[int]:
    """Which of the sequences begin another one, or are the same."""
    order = sorted(range(len(tokens)), key=lambda number: tuple(tokens[number]))
    return [
        one for one, other in pairwise(order) if list(tokens[other][: len(tokens[one])]) == list(tokens[one])
    ]


def _path(place: str, option: Option) -> str:
    return ".".join(filter(None, (place, option.place)))
