"""The turns of a conversation and the tools in it, as OpenAI's API has them, and what is refused in them.

In: dictionaries of a row. Out: checked `Message`s and `Tool`s. Knows neither rows nor templates.
"""

import json
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

TEXT_PARTS = {
    "text": "text",
    "input_text": "text",
    "output_text": "text",
    "refusal": "refusal",
    "thinking": "thinking",
}
"""Kinds of content parts that are text, each with the key that holds it."""


def decoded(value: Any) -> Any:
    """A list or an object that a column holds as JSON text, as it is common for tools."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError as error:
        raise ValueError("expected a list or an object, found text that is not JSON") from error


class Function(BaseModel):
    """A function that a turn calls; its arguments as an object, or as the JSON text that the API has."""

    model_config = ConfigDict(extra="allow")

    name: str
    arguments: Annotated[dict[str, Any], BeforeValidator(lambda value: decoded(value or "{}"))] = {}


class ToolCall(BaseModel):
    """One tool call of an assistant's turn."""

    model_config = ConfigDict(extra="allow")

    id: str | None = None
    type: str = Field("function", pattern="^function$")
    function: Function


class Message(BaseModel):
    """One turn of a conversation. Which other keys the server shows to a template, `chat.py` knows."""

    model_config = ConfigDict(extra="allow")

    role: str = Field(min_length=1)
    content: str | list[Any] | None = None
    tool_calls: list[ToolCall] | None = None

    @model_validator(mode="after")
    def _says_something(self) -> "Message":
        if self.extra("function_call") is not None:
            raise ValueError("'function_call' is shown to no template: expected 'tool_calls'")
        if not isinstance(self.reasoning, str | None):
            raise ValueError("expected text as 'reasoning_content'")
        may_be_silent = self.role == "assistant" and (self.tool_calls or self.reasoning)
        if self.content is None and not may_be_silent:
            raise ValueError("expected text as 'content'; only an assistant that calls tools may have none")
        for part in self.content if isinstance(self.content, list) else ():
            _check_part(part)
        return self

    def extra(self, key: str) -> Any:
        """The value of a key beyond role, content and tool calls; None without it."""
        return (self.model_extra or {}).get(key)

    @property
    def reasoning(self) -> str | None:
        """What was thought before the answer, under either name."""
        reasoning = self.extra("reasoning")
        return self.extra("reasoning_content") if reasoning is None else reasoning

    @property
    def texts(self) -> list[str]:
        """The texts of the content, one for each part of it."""
        if isinstance(self.content, list):
            return [
                part if isinstance(part, str) else part.get(TEXT_PARTS[part["type"]]) or ""
                for part in self.content
            ]
        return [self.content or ""]


def _check_part(part: Any) -> None:
    kind = part.get("type") if isinstance(part, dict) else "text" if isinstance(part, str) else None
    if kind not in TEXT_PARTS:
        raise ValueError(f"expected parts of text as 'content', found one of type {kind or 'unknown'}")
    if isinstance(part, dict) and not isinstance(part.get(TEXT_PARTS[kind]), str | None):
        raise ValueError(f"expected text as '{TEXT_PARTS[kind]}' of a part")


class ToolFunction(BaseModel):
    """What the model is told of a function, with the keys that the server passes on."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(BaseModel):
    """One tool that the assistant may call."""

    type: str = Field("function", pattern="^function$")
    function: ToolFunction
