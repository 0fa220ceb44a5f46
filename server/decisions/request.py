"""The body of a request for decisions, in OpenAI's shape: what is honoured, what may pass, and what is refused.

In: JSON. Out: a checked `DecisionRequest`, or an error that names the field. Every object refuses fields that it does
not know. Knows pydantic; no HTTP, no engine and no prompt.
"""

import json
from collections.abc import Collection, Iterator
from difflib import get_close_matches
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError

from softspec.artefact.validation import first_problem, place_of_first
from softspec.errors import ConfigError, FieldError
from softspec.server.chat.foreign import objection
from softspec.server.chat.wire import EXTENSION, Json

MAX_QUESTIONS = 400
MAX_OPTIONS = 255
"""Both as in OpenAI's API, whose score questions have at most ten levels."""


class _Strict(BaseModel):
    """An object whose unknown fields are kept for `_refuse_unknown`, which names the nearest one that exists."""

    model_config = ConfigDict(extra="allow", strict=True)


class _Unreadable(_Strict):
    """Something of OpenAI's input that no chat template is sure to show to the members; always refused."""

    type: str


class _Picture(_Unreadable):
    type: Literal["input_image"]


class _Breakpoint(_Strict):
    mode: Literal["explicit"]


class Text(_Strict):
    """A piece of text; where its cache entries end is the engine's business."""

    type: Literal["input_text"]
    text: str
    prompt_cache_breakpoint: _Breakpoint | None = None


class Said(_Strict):
    """A piece of what the assistant said."""

    type: Literal["output_text"]
    text: str


class Refusal(_Strict):
    """What the assistant said in place of an answer."""

    type: Literal["refusal"]
    refusal: str


class Data(_Strict):
    """Data that is shown to the members as JSON."""

    type: Literal["input_json"]
    data: dict[str, Any] | list[dict[str, Any]]


Part = Annotated[Text | Said | Refusal | Data | _Picture, Field(discriminator="type")]
Content = str | list[Part]


class Message(_Strict):
    """One message of the input."""

    type: Literal["message"] = "message"
    role: Literal["user", "developer", "system", "assistant"]
    content: Content
    phase: Literal["final_answer"] | None = None


def _is_message(item: Any) -> str:
    kind = item.get("type", "message") if isinstance(item, dict) else "message"
    return "message" if kind == "message" else "other"


Item = Annotated[
    Annotated[Message, Tag("message")] | Annotated[_Unreadable, Tag("other")], Discriminator(_is_message)
]


class Choice(_Strict):
    """One option of a choice."""

    value: str | bool
    description: str | None = None


class Level(_Strict):
    """One level of a score."""

    label: str
    description: str | None = None


class _Question(_Strict):
    instructions: Content
    name: str | None = None


class PredicateQuestion(_Question):
    """Whether a statement about the input is true."""

    type: Literal["predicate"]


class ChoiceQuestion(_Question):
    """Which of several options is right."""

    type: Literal["choice"]
    choices: list[Choice] = Field(min_length=2, max_length=MAX_OPTIONS)


class ScoreQuestion(_Question):
    """Where on an ordered scale the input lies; the first level is the lowest."""

    type: Literal["score"]
    levels: list[Level] = Field(min_length=2, max_length=MAX_OPTIONS)


Question = Annotated[PredicateQuestion | ChoiceQuestion | ScoreQuestion, Field(discriminator="type")]


class DecisionRequest(_Strict):
    """The body of `POST /v1/decisions`: OpenAI's fields, and after them softspec's own.

    `list_options: false` adds nothing to input and instructions in the prompt. `length_normalise: true` compares
    options by the mean log-probability of a token. `uncertainty` is read by whoever knows policies.
    """

    model: str | None = None
    input: str | list[Item]
    questions: list[Question] = Field(min_length=1, max_length=MAX_QUESTIONS)
    list_options: bool = True
    length_normalise: bool = False
    uncertainty: Any = None
    chat_template_kwargs: dict[str, Any] | None = None
    priority: int = Field(default=0, ge=-(2**63), lt=2**63)


def read_request(content: object) -> DecisionRequest:
    """The request in a body of JSON.

    Raises:
        ConfigError: it is not one, or it has what is not honoured; the message says in one line where and why.
    """
    try:
        request = DecisionRequest.model_validate(content)
    except ValidationError as error:
        raise FieldError(place_of_first(error, content), first_problem(error, content)) from error
    require_honoured(request)
    return request


def require_honoured(request: DecisionRequest) -> None:
    """Refuse what has the right shape and would be ignored, or what the members could not be shown.

    Raises:
        ConfigError: there is such a thing.
    """
    for field, value in (request.model_extra or {}).items():
        _refuse_unknown(field, value)
    for place, part in _objects_in("", request):
        _refuse_unread(place, part)
    _require_writable(request.model_dump(exclude={EXTENSION}))


def _refuse_unknown(field: str, value: object) -> None:
    """Refuse an unknown field of the request itself, unless it changes nothing and is no slip of the pen."""
    slip = value is not None and get_close_matches(field, DecisionRequest.model_fields, n=1, cutoff=0.8)
    problem = (
        f"unknown field '{field}': did you mean '{slip[0]}'?"
        if slip
        else objection(field, value, 1, DecisionRequest.model_fields)
    )
    if problem is not None:
        raise FieldError(field, problem)


def _refuse_unread(place: str, part: _Strict) -> None:
    """Refuse an object below the request that the members would not see whole."""
    if isinstance(part, _Unreadable):
        raise FieldError(
            place, f"{place}: '{part.type}' is not supported: the members read text; put it into words"
        )
    for field in part.model_extra or {}:
        known = type(part).model_fields
        raise FieldError(f"{place}.{field}", f"{place}: unknown field '{field}'; {_nearest(field, known)}")


def _objects_in(place: str, value: object) -> Iterator[tuple[str, _Strict]]:
    """Every object below a value, with its dotted path."""
    if isinstance(value, _Strict):
        inside = [(f"{place}.{name}".strip("."), getattr(value, name)) for name in type(value).model_fields]
    elif isinstance(value, list):
        inside = [(f"{place}.{number}", item) for number, item in enumerate(value)]
    else:
        return
    for path, item in inside:
        if isinstance(item, _Strict):
            yield path, item
        yield from _objects_in(path, item)


def _nearest(field: str, known: Collection[str]) -> str:
    nearest = get_close_matches(field, known, n=1)
    return f"did you mean '{nearest[0]}'?" if nearest else f"expected {', '.join(known)}"


def _require_writable(content: Json) -> None:
    """Refuse what Python reads as JSON, but what is none, or cannot be written as UTF-8."""
    try:
        json.dumps(content, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError) as error:
        raise ConfigError(
            "the body has half a surrogate pair, a number that is not finite, or too many levels: expected JSON"
        ) from error
