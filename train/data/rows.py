"""The formats of rows, as TRL and OpenAI have them, and what is refused in them before anything is rendered.

In: rows as dictionaries. Out: checked `Row`s and `VotesRow`s. Knows neither tokenizers nor templates.
"""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from softspec.artefact.validation import first_problem
from softspec.errors import DataError
from softspec.train.data.labels import Name, Votes, Weight
from softspec.train.data.messages import Message, Tool, decoded

AnyRow = TypeVar("AnyRow", bound=BaseModel)
SERVER_ONLY = (
    "add_generation_prompt",
    "chat_template",
    "continue_final_message",
    "conversation",
    "max_length",
    "messages",
    "padding",
    "return_assistant_tokens_mask",
    "return_dict",
    "return_tensors",
    "strftime_now",
    "tokenize",
    "tokenizer_kwargs",
    "tools",
    "truncation",
)
"""Arguments of a template that no request can set."""
ROLES = ("system", "developer", "user", "assistant", "tool")
PYTHON_MESSAGES = re.compile(rf"\s*\[?\s*\{{\s*'role'\s*:\s*'({'|'.join(ROLES)})'")


class LabelledRow(BaseModel):
    """What any row may say beside its text; other keys are allowed and ignored, as in TRL."""

    model_config = ConfigDict(extra="ignore")

    source: Name = None
    group: Name = None
    weight: Weight = 1.0
    tools: Annotated[list[Tool] | None, BeforeValidator(decoded)] = None
    chat_template_kwargs: Annotated[dict[str, Any] | None, BeforeValidator(decoded)] = None

    @model_validator(mode="after")
    def _requests_can_say_so_too(self) -> "LabelledRow":
        for key in self.chat_template_kwargs or ():
            if key in SERVER_ONLY:
                raise ValueError(f"chat_template_kwargs.{key} is the server's own: leave it out")
        return self


class Row(LabelledRow):
    """One row of completions: `messages`, or `prompt` and `completion`, as text or as messages.

    Text is used as it is, without the chat template, and matches `/v1/completions`; messages match
    `/v1/chat/completions`. A text `prompt` beside `messages` is a copy of what they begin with, as in the best-known
    data sets.
    """

    messages: list[Message] | None = None
    prompt: str | list[Message] | None = None
    completion: str | list[Message] | None = None

    @model_validator(mode="after")
    def _one_complete_form(self) -> "Row":
        if self.messages is not None and self.completion is not None:
            raise ValueError("found 'messages' beside 'completion': expected one of the two")
        if self.messages is None and (self.prompt is None) and (self.completion is None):
            raise ValueError("expected either 'messages' or 'prompt' with 'completion'")
        if self.messages is None and (self.prompt is None or self.completion is None):
            raise ValueError("expected both 'prompt' and 'completion'")
        if self.messages is None and isinstance(self.prompt, str) != isinstance(self.completion, str):
            raise ValueError("'prompt' and 'completion' must both be text or both be messages")
        if self.is_text:
            self._check_text()
        else:
            self._check_turns()
        return self

    @property
    def is_text(self) -> bool:
        """Whether it is used as it is, without the chat template."""
        return isinstance(self.completion, str)

    def turns(self) -> list[Message]:
        """The whole conversation with its answers; empty for text."""
        if self.messages is not None:
            return self.messages
        if isinstance(self.prompt, list) and isinstance(self.completion, list):
            return self.prompt + self.completion
        return []

    def answers(self, train_on: str) -> list[int]:
        """Which turns are supervised: the last one, or all of the assistant's that answer something.

        Raises:
            DataError: none is, or `completion` has several turns though only the last one would be learnt.
        """
        turns = self.turns()
        first = len(self.prompt) if isinstance(self.prompt, list) and self.messages is None else 1
        if train_on == "last":
            if first < len(turns) - 1 and self.messages is None:
                raise DataError(
                    "'completion' has several messages: expected one assistant message, or train_on: all"
                )
            first = len(turns) - 1
        # OpenAI's fine-tuning format has a weight of 0 on turns that are not to be learnt.
        answers = [
            number
            for number in range(first, len(turns))
            if turns[number].role == "assistant" and turns[number].extra("weight") != 0
        ]
        if not answers:
            raise DataError("no turn is left to learn: every answer has the weight 0")
        return answers

    def _check_text(self) -> None:
        if self.tools or self.chat_template_kwargs:
            raise ValueError(
                "'tools' and 'chat_template_kwargs' need messages: text goes through no template"
            )
        for key, text in (("prompt", self.prompt), ("completion", self.completion)):
            if isinstance(text, str) and is_messages_as_text(text):
                raise ValueError(
                    f"'{key}' is messages written as JSON text: expected the list of messages itself"
                )
        if not str(self.completion).strip():
            raise ValueError("empty completion: the assistant must say something")

    def _check_turns(self) -> None:
        turns = self.turns()
        if len(turns) < 2 or turns[-1].role != "assistant":
            raise ValueError("expected at least one message and then the assistant's answer as the last one")
        if self.messages is None and not self.prompt:
            raise ValueError("expected at least one message as 'prompt'")
        for turn in turns:
            if turn.extra("weight") not in (None, 0, 1):
                raise ValueError("the weight of a turn must be 0 or 1; that of a row can be any")
        if not (any(text.strip() for text in turns[-1].texts) or turns[-1].tool_calls):
            raise ValueError("empty completion: the assistant must say something")


class PromptRow(LabelledRow):
    """A prompt that is to be answered: text, used as it is, or at least one message."""

    prompt: str | Annotated[list[Message], Field(min_length=1)]


def is_messages_as_text(text: str) -> bool:
    """Whether a text is a message or a list of them, as JSON or as Python writes it."""
    if PYTHON_MESSAGES.match(text):
        return True
    if not text.lstrip().startswith(("[", "{")):
        return False
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        return False
    turns = content if isinstance(content, list) else [content]
    return bool(turns) and all(isinstance(turn, dict) and turn.get("role") in ROLES for turn in turns)


class VotesRow(LabelledRow):
    """One row of soft labels: how many votes each completion of a `prompt` has."""

    prompt: str | list[Message]
    votes: Votes
    completion: Any = None
    messages: Any = None

    @model_validator(mode="after")
    def _somebody_voted(self) -> "VotesRow":
        if self.completion is not None or self.messages is not None:
            raise ValueError("expected 'votes' with 'prompt' alone: the options are the completions")
        if not any(self.votes.values()):
            raise ValueError("expected at least one option in 'votes' with more than 0 votes")
        return self

    def rows(self) -> Iterator[dict[str, Any]]:
        """A row to supervise for each option that has votes, weighing its share of them."""
        total = sum(self.votes.values())
        shared = self.model_dump(include={"prompt", "source", "group", "tools", "chat_template_kwargs"})
        for option, count in self.votes.items():
            answer = option if isinstance(self.prompt, str) else [{"role": "assistant", "content": option}]
            if count:
                yield {**shared, "completion": answer, "weight": self.weight * (count / total)}


def parse_row(content: Mapping[str, Any], kind: type[AnyRow], place: str) -> AnyRow:
    """The row with its keys and values checked; `place` names it in messages.

    Raises:
        DataError: it is malformed.
    """
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        raise DataError(f"{place}: {first_problem(error, content)}") from error
