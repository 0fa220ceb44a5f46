"""Options as events that exclude one another: which tokens the assistant must say for each.

In: the options of a question, and what turns a text into an answer's tokens. Out: tokens, none of which are the
beginning of another option's. Knows no engine, no HTTP and no request.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise

from softspec.errors import ConfigError, FieldError
from softspec.server.decisions.prompt import Option

AnswerIds = Callable[[str], list[int]]
"""The tokens of an assistant's answer, without what ends its turn."""


def tokens_of(options: Sequence[Option], answer_ids: AnswerIds, place: str) -> list[list[int]]:
    """The tokens with which the assistant says each option.

    An option counts as said once its own tokens are, whatever may follow. One that begins another option counts only
    with the end of the turn after it, as its own tokens alone are also the beginning of the other: see `beginnings`.

    Args:
        place: the path of the question.
    Raises:
        FieldError: an option has no text.
    """
    return [_tokens_of_one(option, answer_ids, _path(place, option)) for option in options]


def beginnings(tokens: Sequence[Sequence[int]]) -> list[int]:
    """Which options begin another one, or are the same: in the order of a dictionary the next one shows it."""
    order = sorted(range(len(tokens)), key=lambda number: tuple(tokens[number]))
    return [
        one for one, other in pairwise(order) if list(tokens[other][: len(tokens[one])]) == list(tokens[one])
    ]


def ended(
    options: Sequence[Option], tokens: Sequence[Sequence[int]], end: int, place: str
) -> list[list[int]]:
    """The tokens that stand for each option, none of which begin another's; `end` ends the assistant's turn.

    Raises:
        FieldError: an option is not to be told from another.
    """
    short = beginnings(tokens)
    told = [[*own, end] if number in short else list(own) for number, own in enumerate(tokens)]
    for number in beginnings(told):
        path = _path(place, options[number])
        raise FieldError(
            path,
            f"{path}: the members say '{options[number].text}' as they say another option; leave one out",
        )
    return told


def _tokens_of_one(option: Option, answer_ids: AnswerIds, path: str) -> list[int]:
    try:
        tokens = answer_ids(option.text) if option.text.strip() else []
    except ConfigError as error:
        raise FieldError(path, f"{path}: {error}") from error
    if not tokens:
        raise FieldError(path, f"{path} has no text that the members could say: expected some")
    return tokens


def _path(place: str, option: Option) -> str:
    return ".".join(filter(None, (place, option.place)))
