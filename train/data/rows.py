"""Rows of completions, in TRL's formats, become prompt and completion token ids.

In: rows and the base model's tokenizer. Out: `Example`s, one at a time. The prompt ids are exactly those the
server sends to the engine for the same conversation. Loads no model.
"""

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from transformers import PreTrainedTokenizerBase

from softspec.artefact.validation import first_problem
from softspec.errors import DataError
from softspec.train.data.units import Example

AnyRow = TypeVar("AnyRow", bound=BaseModel)
PlacedRows = Iterable[tuple[str, Mapping[str, Any]]]
"""Rows, each with what names it in messages."""
Name = Annotated[str, Field(coerce_numbers_to_str=True)]


class Message(BaseModel):
    """One turn of a conversation; other keys (tool calls, names) go to the chat template unchanged."""

    model_config = ConfigDict(extra="allow")

    role: str = Field(min_length=1)
    content: str


class LabelledRow(BaseModel):
    """What any row may say beside its text; other keys are allowed and ignored, as in TRL."""

    model_config = ConfigDict(extra="ignore")

    source: Name | None = None
    group: Name | None = None
    weight: float = Field(default=1.0, gt=0, allow_inf_nan=False)


class Row(LabelledRow):
    """One row of a completion: `messages`, or `prompt` and `completion`, as text or as messages.

    Text is used as it is, without the chat template, and matches `/v1/completions`; messages match
    `/v1/chat/completions`. Only the last assistant turn is supervised, which keeps the prompt length well
    defined.
    """

    messages: list[Message] | None = None
    prompt: str | list[Message] | None = None
    completion: str | list[Message] | None = None

    @model_validator(mode="after")
    def _one_complete_form(self) -> "Row":
        has_pair = self.prompt is not None or self.completion is not None
        if (self.messages is None) != has_pair:
            raise ValueError("expected either 'messages' or 'prompt' with 'completion'")
        if has_pair and (self.prompt is None or self.completion is None):
            raise ValueError("expected both 'prompt' and 'completion'")
        if isinstance(self.prompt, str) != isinstance(self.completion, str):
            raise ValueError("'prompt' and 'completion' must both be text or both be messages")
        if not isinstance(self.completion, str):
            self._check_turns()
        if not self._completion_text().strip():
            raise ValueError("empty completion: the assistant must say something")
        return self

    def turns(self) -> list[Message]:
        """The whole conversation with its answer; empty for text."""
        if self.messages is not None:
            return self.messages
        if isinstance(self.prompt, list) and isinstance(self.completion, list):
            return self.prompt + self.completion
        return []

    def _check_turns(self) -> None:
        turns = self.turns()
        if len(turns) < 2 or turns[-1].role != "assistant":
            raise ValueError("expected at least one message and then the assistant's answer as the last one")
        if isinstance(self.completion, list) and len(self.completion) != 1:
            raise ValueError("'completion' must be exactly one assistant message")

    def _completion_text(self) -> str:
        return self.completion if isinstance(self.completion, str) else self.turns()[-1].content


class VotesRow(LabelledRow):
    """One row of soft labels: how many votes each completion of a `prompt` has."""

    prompt: str | list[Message]
    votes: dict[str, Annotated[float, Field(ge=0, allow_inf_nan=False)]]
    completion: Any = None
    messages: Any = None

    @model_validator(mode="after")
    def _somebody_voted(self) -> "VotesRow":
        if self.completion is not None or self.messages is not None:
            raise ValueError("expected 'votes' with 'prompt' alone: the options are the completions")
        if not 0 < sum(self.votes.values()) < math.inf:
            raise ValueError("expected at least one option in 'votes' with more than 0 votes")
        return self

    def rows(self) -> Iterator[dict[str, Any]]:
        """A row to supervise for each option that has votes, weighing its share of them."""
        total = sum(self.votes.values())
        shared = self.model_dump(include={"prompt", "source", "group"})
        for option, count in self.votes.items():
            answer = option if isinstance(self.prompt, str) else [{"role": "assistant", "content": option}]
            if count:
                yield {**shared, "completion": answer, "weight": self.weight * count / total}


def read_examples(
    rows: PlacedRows, tokenizer: PreTrainedTokenizerBase, max_length: int, eos_ids: Collection[int]
) -> Iterator[Example]:
    """Examples of rows with their places, checked and tokenised; a row of votes gives one for each option.

    Raises:
        DataError: a row is malformed, has an empty completion or is longer than `max_length` tokens; the message has
            its place.
    """
    for place, content in rows:
        for row in _supervised_rows(content, place):
            yield checked_length(tokenise(row, tokenizer, eos_ids, place), max_length, place)


def _supervised_rows(content: Mapping[str, Any], place: str) -> list[Row]:
    if content.get("votes") is None:
        return [parse_row(content, Row, place)]
    return [parse_row(row, Row, f"{place}: votes") for row in parse_row(content, VotesRow, place).rows()]


def parse_row(content: Mapping[str, Any], kind: type[AnyRow], place: str) -> AnyRow:
    """The row with its keys and values checked; `place` names it in messages.

    Raises:
        DataError: it is malformed.
    """
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        raise DataError(f"{place}: {first_problem(error, content)}") from error


def tokenise(row: Row, tokenizer: PreTrainedTokenizerBase, eos_ids: Collection[int], place: str) -> Example:
    """One row as token ids; `place` names it in messages."""
    if isinstance(row.prompt, str):
        prompt_ids = tokenizer(row.prompt)["input_ids"]
        completion_ids = tokenizer(row.completion, add_special_tokens=False)["input_ids"]
        completion_ids = [*completion_ids, tokenizer.eos_token_id]
    else:
        prompt_ids, completion_ids = _chat_ids(row.turns(), tokenizer, place)
        completion_ids = _up_to_end_of_turn(completion_ids, eos_ids)
    if not prompt_ids:
        raise DataError(f"{place}: empty prompt; expected at least one token before the completion")
    return Example(tuple(prompt_ids), tuple(completion_ids), row.source, row.group, row.weight)


def _chat_ids(
    turns: Sequence[Message], tokenizer: PreTrainedTokenizerBase, place: str
) -> tuple[list[int], list[int]]:
    """Prompt ids as the server makes them, and the ids of everything the template adds after them."""
    if not tokenizer.chat_template:
        raise DataError(f"{place}: the base model has no chat template; use text 'prompt' and 'completion'")
    messages = [turn.model_dump() for turn in turns]
    prompt = tokenizer.apply_chat_template(messages[:-1], add_generation_prompt=True, tokenize=False)
    whole = tokenizer.apply_chat_template(messages, tokenize=False)
    if not whole.startswith(prompt):
        raise DataError(
            f"{place}: the chat template renders the prompt differently once the answer follows; "
            "expected the prompt to stay a prefix, so use text 'prompt' and 'completion'"
        )
    prompt_ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    whole_ids = tokenizer(whole, add_special_tokens=False)["input_ids"]
    if whole_ids[: len(prompt_ids)] == prompt_ids:
        return prompt_ids, whole_ids[len(prompt_ids) :]
    # A merge across the edge: at serving time the prompt is tokenised by itself, so it must be here too.
    return prompt_ids, tokenizer(whole[len(prompt) :], add_special_tokens=False)["input_ids"]


def _up_to_end_of_turn(ids: list[int], eos_ids: Collection[int]) -> list[int]:
    """Drop what the template adds after the last end-of-turn token, such as ChatML's newline."""
    last = max((index for index, token in enumerate(ids) if token in eos_ids), default=len(ids) - 1)
    return ids[: last + 1]


def checked_length(example: Example, max_length: int, place: str) -> Example:
    """The example itself, if it is short enough; `place` names it in messages.

    Raises:
        DataError: it has more tokens than `max_length`.
    """
    prompt, completion = len(example.prompt_ids), len(example.completion_ids)
    if prompt >= max_length:
        raise DataError(
            f"{place}: the prompt has {prompt} tokens, expected fewer than max_length "
            f"{max_length}; shorten it or raise max_length"
        )
    if prompt + completion > max_length:
        raise DataError(
            f"{place}: prompt and completion have {prompt} + {completion} tokens, expected at most "
            f"max_length {max_length}; shorten the example or raise max_length"
        )
    return example
