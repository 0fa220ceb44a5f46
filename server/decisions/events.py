"""Options as events that exclude one another: which tokens the assistant must say for each.

In: the options of a question, and what turns a text into an answer's tokens. Out: tokens, none of which are the
beginning of another option's. Knows no engine, no HTTP and no request.
"""

from collections.abc import Awaitable, Callable, Sequence
from itertools import pairwise

from softspec.errors import ConfigError, FieldError
from softspec.server.decisions.prompt import Option

AnswerIds = Callable[[str], list[int]]
"""The tokens of an assistant's answer, without what ends its turn."""
EndId = Callable[[], Awaitable[int]]
"""The token that ends the assistant's turn."""


async def tokens_of(
    options: Sequence[Option], answer_ids: AnswerIds, end_id: EndId, place: str
) -> list[list[int]]:
    """The tokens that stand for each option.

    An option counts as said once its own tokens are, whatever may follow. One that begins another option counts only
    with the end of the turn after it, as its own tokens alone are also the beginning of the other.

    Args:
        place: the path of the question.
    Raises:
        FieldError: an option has no text, or is not to be told from another.
    """
    tokens = [_tokens_of_one(option, answer_ids, _path(place, option)) for option in options]
    if not (short := _beginnings(tokens)):
        return tokens
    end = await end_id()
    for number in short:
        tokens[number] = [*tokens[number], end]
    for number in _beginnings(tokens):
        path = _path(place, options[number])
        raise FieldError(
            path,
            f"{path}: the members say '{options[number].text}' as they say another option; leave one out",
        )
    return tokens


def _tokens_of_one(option: Option, answer_ids: AnswerIds, path: str) -> list[int]:
    try:
        tokens = answer_ids(option.text) if option.text.strip() else []
    except ConfigError as error:
        raise FieldError(path, f"{path}: {error}") from error
    if not tokens:
        raise FieldError(path, f"{path} has no text that the members could say: expected some")
    return tokens


def _beginnings(tokens: Sequence[Sequence[int]]) -> list[int]:
    """Which of the sequences begin another one, or are the same: in the order of a dictionary the next one shows it."""
    order = sorted(range(len(tokens)), key=lambda number: tuple(tokens[number]))
    return [
        one for one, other in pairwise(order) if list(tokens[other][: len(tokens[one])]) == list(tokens[one])
    ]


def _path(place: str, option: Option) -> str:
    return ".".join(filter(None, (place, option.place)))
