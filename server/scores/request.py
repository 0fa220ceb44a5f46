"""The body of a request for scores: what may be asked about, and what is refused.

In: JSON. Out: a checked `ScoreRequest`, or an error that names the field. Knows pydantic; no HTTP and no engine.
"""

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from softspec.artefact.validation import first_problem, place_of_first
from softspec.errors import ConfigError, FieldError
from softspec.server.chat.foreign import objection

MAX_ANSWERS = 64
TokenId = Annotated[int, Field(ge=0)]

_REASONS = {
    "cache_salt": "what is computed for scores is shared with other requests; leave it out",
    "response_format": "answers are scored without constraints; leave it out",
    "structured_outputs": "answers are scored without constraints; leave it out",
    "uncertainty": "'detail' stands by itself here, and no policy applies, as nothing is answered",
}


class Conversation(BaseModel):
    """The fields of a chat request on which the prompt of an answer to messages depends; null is as if left out."""

    tools: list[dict[str, Any]] | None = None
    tool_choice: Literal["none", "auto"] | None = None
    chat_template: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    add_special_tokens: bool | None = None
    documents: list[dict[str, str]] | None = None
    reasoning_effort: str | None = None


class ScoreRequest(Conversation):
    """The body of `POST /v1/uncertainty`.

    `finish_reason` is how the answers ended: `stop` counts the token that ends an answer, `length` does not.
    """

    model_config = ConfigDict(extra="allow", strict=True)

    model: str | None = None
    messages: list[dict[str, Any]] | None = Field(None, min_length=1)
    prompt: Annotated[str, Field(min_length=1)] | Annotated[list[TokenId], Field(min_length=1)] | None = None
    answers: list[str] = Field(min_length=1, max_length=MAX_ANSWERS)
    finish_reason: Literal["stop", "length"] = "stop"
    detail: Literal["summary", "tokens"] = "summary"
    priority: int = Field(default=0, ge=-(2**63), lt=2**63)

    def conversation(self) -> dict[str, Any]:
        """What was said of the conversation beside its messages."""
        fields = {name: getattr(self, name) for name in Conversation.model_fields}
        return {name: value for name, value in fields.items() if value is not None}


def read_request(content: object) -> ScoreRequest:
    """The request in a body of JSON.

    Raises:
        ConfigError: it is not one, or it has what is not honoured; the message says in one line where and why.
    """
    _require_text(content)
    try:
        request = ScoreRequest.model_validate(content)
    except ValidationError as error:
        raise FieldError(place_of_first(error, content), first_problem(error, content)) from error
    for field, value in (request.model_extra or {}).items():
        _refuse_unknown(field, value)
    if (request.messages is None) == (request.prompt is None):
        raise FieldError("messages", "expected either 'messages' or 'prompt', with the 'answers' to it")
    if request.prompt is not None:
        for field in request.conversation():
            raise FieldError(field, f"'{field}' needs 'messages': a prompt goes through no template")
    for number, answer in enumerate(request.answers):
        if not answer and request.finish_reason == "length":
            raise FieldError(
                f"answers.{number}",
                f"answers.{number} is empty, and with finish_reason 'length' nothing ends it",
            )
    return request


def _refuse_unknown(field: str, value: object) -> None:
    if value is not None and field in _REASONS:
        raise FieldError(field, f"'{field}' is not supported at /v1/uncertainty: {_REASONS[field]}")
    problem = objection(field, value, 1, ScoreRequest.model_fields)
    if problem is not None:
        raise FieldError(field, problem)


def _require_text(content: object) -> None:
    """Refuse what Python reads as JSON, but what is none or cannot be written as UTF-8."""
    try:
        json.dumps(content, ensure_ascii=False, allow_nan=False).encode()
    except UnicodeEncodeError as error:
        raise ConfigError("the body has half a surrogate pair, which is no character: remove it") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(
            "the body has a number that is not finite, or too many levels: send JSON"
        ) from error
