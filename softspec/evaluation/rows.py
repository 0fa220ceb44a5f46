"""Rows of evaluation: choices of which somebody picked some, and prompts with reference answers.

In: a file of JSON. Out: `Question`s, one at a time, with their labels as shares of the choices. Knows no model.
"""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AliasChoices, BeforeValidator, Field, StrictInt, field_validator, model_validator

from softspec.artefact.validation import shown
from softspec.errors import DataError
from softspec.train.data.json_file import read_json_file
from softspec.train.data.labels import LARGEST, Name
from softspec.train.data.messages import Message
from softspec.train.data.rows import LabelledRow, is_messages_as_text, parse_row

Form = Literal["choices", "generation"]
Prompt = str | list[dict[str, Any]]
Text = Annotated[str, Field(strict=True, min_length=1)]
Picked = list[StrictInt | str]


@dataclass(frozen=True, kw_only=True)
class LabelledChoices:
    """C distinct choices of one row, and what is known of them.

    `row` counts from 0; `item` is the same for rows that ask the same. `answer` is the index of the right choice,
    `votes` (C,) are counts, `ratings` are annotator -> the indices that they picked. Of a generation row `choices` are
    the reference answers, and there are no other labels.
    """

    row: int
    form: Form
    item: str
    choices: tuple[str, ...]
    answer: int | None = None
    votes: tuple[float, ...] | None = None
    ratings: Mapping[str, tuple[int, ...]] | None = None
    kind: str | None = None
    source: str | None = None
    group: str | None = None
    weight: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Question(LabelledChoices):
    """One row of a file; `place` names it in messages."""

    place: str
    prompt: Prompt


@dataclass
class Notes:
    """What was noted while reading: how many rows name a choice twice."""

    repeated: int = 0

    def lines(self) -> list[str]:
        """Each note as a line; none if there is nothing to tell."""
        if not self.repeated:
            return []
        are = "1 row names" if self.repeated == 1 else f"{self.repeated:,} rows name"
        return [f"{are} a choice twice: it counts as one choice, with the labels of both"]


class AskedRow(LabelledRow):
    """What rows of both forms have."""

    prompt: str | list[Message] | None = None
    messages: list[Message] | None = None
    kind: Name = None

    @model_validator(mode="after")
    def _asks_once(self) -> "AskedRow":
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("expected either 'prompt' or 'messages'")
        if self.tools or self.chat_template_kwargs:
            raise ValueError("'tools' and 'chat_template_kwargs' are not read here: leave them out")
        asked = self.asked
        if isinstance(asked, str):
            if is_messages_as_text(asked):
                raise ValueError(
                    "'prompt' is messages written as JSON text: expected the list of messages itself"
                )
        elif not asked:
            raise ValueError("expected at least one message")
        elif asked[-1].role == "assistant":
            raise ValueError("expected messages that end before the assistant's answer")
        return self

    @property
    def asked(self) -> str | list[Message] | None:
        return self.prompt if self.messages is None else self.messages

    def as_prompt(self) -> Prompt:
        """Text as it is, or messages as they were written."""
        asked = self.asked
        if isinstance(asked, str):
            return asked
        return [turn.model_dump(exclude_unset=True) for turn in asked or []]


class ChoicesRow(AskedRow):
    """A prompt and the choices that exclude one another; who picked which, as far as it is known."""

    choices: Annotated[list[Text], Field(min_length=2)]
    answer: StrictInt | str | None = None
    votes: list[Any] | dict[str, Any] | None = None
    ratings: dict[str, Any] | None = None

    @field_validator("ratings")
    @classmethod
    def _as_lists(cls, ratings: dict[str, Any] | None) -> dict[str, Picked] | None:
        found = {
            name: picked if isinstance(picked, list) else [picked]
            for name, picked in (ratings or {}).items()
            if picked is not None and picked != []
        }
        for name, picked in found.items():
            if any(isinstance(one, bool) or not isinstance(one, int | str) for one in picked):
                raise ValueError(
                    f"'{name}' has {shown(picked)}: expected a choice, its index, or a list of them"
                )
        return found or None

    def labels(self) -> dict[str, Any]:
        """`choices`, `answer`, `votes` and `ratings` of a question, with every choice once.

        Raises:
            ValueError: one of them is not about these choices.
        """
        distinct = tuple(dict.fromkeys(self.choices))
        if len(distinct) < 2:
            raise ValueError("all 'choices' are the same: expected two that differ")
        ratings = {
            name: tuple(dict.fromkeys(self._index(one, f"ratings.{name}") for one in picked))
            for name, picked in (self.ratings or {}).items()
        }
        return {
            "choices": distinct,
            "answer": None if self.answer is None else self._index(self.answer, "answer"),
            "votes": self._votes(len(distinct)),
            "ratings": ratings or None,
        }

    def _index(self, picked: int | str, key: str) -> int:
        """Which of the distinct choices is meant."""
        if isinstance(picked, int):
            if not 0 <= picked < len(self.choices):
                raise ValueError(
                    f"{key}: found {picked}, expected an index from 0 to {len(self.choices) - 1}, or the choice's text"
                )
            picked = self.choices[picked]
        elif picked not in self.choices:
            raise ValueError(
                f"{key}: found {shown(picked)}, expected one of {shown(self.choices)}, or its index"
            )
        return list(dict.fromkeys(self.choices)).index(picked)

    def _votes(self, num_choices: int) -> tuple[float, ...] | None:
        if self.votes is None:
            return None
        if isinstance(self.votes, list) and len(self.votes) != len(self.choices):
            raise ValueError(
                f"found {len(self.votes)} 'votes' for {len(self.choices)} choices: expected one each"
            )
        pairs = self.votes.items() if isinstance(self.votes, dict) else enumerate(self.votes)
        counts = [0.0] * num_choices
        for picked, count in pairs:
            counts[self._index(picked, "votes")] += _count(count)
        if not any(counts):
            raise ValueError("expected at least one choice in 'votes' with more than 0 votes")
        return tuple(counts)


class ReferencesRow(AskedRow):
    """A prompt and reference answers, of which each is right."""

    answers: Annotated[
        list[Text],
        BeforeValidator(lambda value: [value] if isinstance(value, str) else value),
        Field(min_length=1, validation_alias=AliasChoices("answers", "references", "answer", "completion")),
    ]


def _count(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | None):
        raise ValueError(f"votes: expected numbers, found {shown(value)}")
    if value is not None and not (math.isfinite(value) and 0 <= value <= LARGEST):
        raise ValueError(f"votes: expected numbers from 0 to {LARGEST:g}, found {shown(value)}")
    return float(value or 0)


@dataclass
class _Reader:
    path: Path
    notes: Notes = field(default_factory=Notes)

    def question(self, number: int, place: str, content: dict[str, Any]) -> Question:
        if content.get("choices") is None and isinstance(content.get("votes"), dict):
            content = {**content, "choices": list(content["votes"])}  # soft labels, as for training
        is_choice = content.get("choices") is not None
        row = (
            parse_row(content, ChoicesRow, place)
            if is_choice
            else parse_row(_asked(content, place), ReferencesRow, place)
        )
        try:
            labels = row.labels() if isinstance(row, ChoicesRow) else {"choices": _distinct(row.answers)}
        except ValueError as error:
            raise DataError(f"{place}: {error}") from error
        if isinstance(row, ChoicesRow):
            self.notes.repeated += len(labels["choices"]) < len(row.choices)
        prompt = row.as_prompt()
        return Question(
            row=number,
            place=place,
            form="choices" if is_choice else "generation",
            prompt=prompt,
            item=_digest(prompt),
            kind=row.kind,
            source=row.source,
            group=row.group,
            weight=row.weight,
            **labels,
        )


def read_questions(path: Path, notes: Notes | None = None) -> Iterator[Question]:
    """All rows in their order; `notes` learns what is worth telling once.

    Raises:
        DataError: the file cannot be read or has no rows, or a row is malformed; the message has its place.
    """
    reader = _Reader(path, notes or Notes())
    number = -1
    for number, (place, content) in enumerate(read_json_file(path)):
        yield reader.question(number, place, content)
    if number < 0:
        raise DataError(f"{path}: no rows found; expected one question a line, with 'choices' or 'answers'")


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _asked(content: dict[str, Any], place: str) -> dict[str, Any]:
    """A row of training as one with a reference answer: its last turn; other rows as they are."""
    answered = [
        key for key in ("answers", "references", "answer", "completion") if content.get(key) is not None
    ]
    if len(answered) > 1:
        raise DataError(f"{place}: found {' beside '.join(map(repr, answered))}: expected one of them")
    if not answered:
        messages = content.get("messages")
        turns = messages if isinstance(messages, list) else []
        last = turns[-1] if turns else None
        if not isinstance(last, dict) or last.get("role") != "assistant":
            raise DataError(f"{place}: expected 'choices', or reference answers in 'answers'")
        return {**content, "messages": turns[:-1], "answers": [last.get("content")]}
    found = content[answered[0]]
    if answered[0] == "completion" and isinstance(found, list):
        if len(found) != 1 or not isinstance(found[0], dict):
            raise DataError(f"{place}: expected one assistant message as 'completion'")
        found = found[0].get("content")
    rest = {key: value for key, value in content.items() if key != answered[0]}
    return {**rest, "answers": found}


def _distinct(texts: Sequence[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(texts))


def _digest(prompt: Prompt) -> str:
    """Sixteen digits that rows with the same prompt share."""
    return hashlib.sha256(json.dumps(prompt, sort_keys=True).encode()).hexdigest()[:16]
