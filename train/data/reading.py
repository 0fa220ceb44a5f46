"""Rows with their places become `Example`s: which turns are supervised, and how long a row may be.

In: rows and a `Reading`. Out: `Example`s, one at a time, and lines about what was noted. Loads no model.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import date
from functools import cached_property
from typing import Any, Literal

from transformers import PreTrainedTokenizerBase

from softspec.console import tell
from softspec.errors import DataError
from softspec.train.data.chat import Chat
from softspec.train.data.notes import Notes
from softspec.train.data.rows import PromptRow, Row, VotesRow, parse_row
from softspec.train.data.tokenise import Tokens
from softspec.train.data.units import Example, UnitT

PlacedRows = Iterable[tuple[str, Mapping[str, Any]]]
"""Rows, each with what names it in messages."""


@dataclass(frozen=True)
class Reading:
    """How rows become examples: what the base and its server decide, and what the configuration asks for.

    Args:
        stop_ids: tokens at which the server stops.
        max_length, context: most tokens of prompt and completion, as configured and as the base allows.
        long_rows: whether rows with more are refused, once all have been read, or dropped.
        train_on: which turns of a conversation are supervised.
        started_on: the day that a template with a clock is given; today when empty.
        tell: where a line goes about what was noted.
    """

    tokenizer: PreTrainedTokenizerBase
    stop_ids: Collection[int]
    max_length: int
    context: int | None = None
    long_rows: Literal["refuse", "drop"] = "refuse"
    train_on: Literal["last", "all"] = "last"
    started_on: date | None = None
    tell: Callable[[str], None] = tell
    notes: Notes = field(default_factory=Notes)

    def examples(self, row: Row, place: str) -> list[Example]:
        """One row as token ids, an example for each supervised turn; `place` names it in messages.

        Raises:
            DataError: it cannot be rendered or tokenised so that the server would read and write the same.
        """
        try:
            ids = self._ids(row, place)
        except DataError as error:
            raise DataError(f"{place}: {error}") from error
        return [
            Example(tuple(prompt), tuple(completion), row.source, row.group, row.weight)
            for prompt, completion in ids
        ]

    def prompt_ids(self, row: PromptRow, place: str) -> tuple[int, ...]:
        """A prompt by itself, as the server makes it of a request; `place` names it in messages.

        Raises:
            DataError: it cannot be rendered, or comes to no token.
        """
        try:
            if isinstance(row.prompt, str):
                return tuple(self._tokens.prompt_of_text(row.prompt, place))
            return tuple(self._tokens.prompt_of_chat(self._chat.prompt(row.prompt, row)))
        except DataError as error:
            raise DataError(f"{place}: {error}") from error

    def _ids(self, row: Row, place: str) -> list[tuple[list[int], list[int]]]:
        if row.is_text:
            return [self._tokens.of_text(str(row.prompt), str(row.completion), place)]
        turns, found = row.turns(), []
        for number in row.answers(self.train_on):
            text = self._chat.rendered(turns[: number + 1], row)
            found.append(self._tokens.of_chat(text.prompt, text.completion, place))
        return found

    def fitting(self, rows: Iterable[tuple[str, list[UnitT]]]) -> Iterator[UnitT]:
        """The units of the rows that are short enough, in all their completions; then the notes are told.

        Raises:
            DataError: some are too long and not to be dropped, or none is left; said once all have been read.
        """
        limit = min(self.max_length, self.context or self.max_length)
        read, long, longest, where = 0, 0, limit, ""
        for place, units in rows:
            read += 1
            length = max(
                len(each.prompt_ids) + len(each.completion_ids) for unit in units for each in unit.completions
            )
            if length <= limit:
                yield from units
                continue
            long += 1
            if length > longest:
                longest, where = length, place
        if long:
            self._say_too_long(long, read, longest, where)
        for line in self.notes.lines():
            self.tell(line)

    def _say_too_long(self, long: int, read: int, longest: int, where: str) -> None:
        limit = f"max_length {self.max_length}"
        advice = "raise max_length"
        if self.context and self.context < self.max_length:
            limit, advice = f"the {self.context} tokens of the base's context", "take another base"
        are = "is" if long == 1 else "are"
        found = f"{long} of {read} rows {are} longer than {limit}, the longest has {longest} tokens ({where})"
        if self.long_rows == "refuse":
            raise DataError(f"{found}; shorten them, {advice}, or leave them out with long_rows: drop")
        if long == read:
            raise DataError(f"{found}; no row is left")
        self.tell(f"{found}; they are left out")

    @cached_property
    def _tokens(self) -> Tokens:
        return Tokens(self.tokenizer, self.stop_ids, self.notes)

    @cached_property
    def _chat(self) -> Chat:
        return Chat(self.tokenizer, list(self._tokens.stops), self.started_on)


def read_examples(rows: PlacedRows, reading: Reading) -> Iterator[Example]:
    """Examples of rows with their places, checked and tokenised.

    A row of votes gives an example for each option, one of a conversation an example for each supervised turn. Where
    all turns are, those of a row without a `group` are a group of their own.

    Raises:
        DataError: a row is malformed or cannot be learnt, with its place; or rows are too long.
    """
    return reading.fitting(
        (place, _examples(content, place, number, reading)) for number, (place, content) in enumerate(rows)
    )


def _examples(content: Mapping[str, Any], place: str, number: int, reading: Reading) -> list[Example]:
    if content.get("votes") is not None:
        return _voted(content, place, reading)
    row = parse_row(content, Row, place)
    if reading.train_on == "all" and row.group is None:
        row = row.model_copy(update={"group": f"row {number}"})
    return reading.examples(row, place)


def _voted(content: Mapping[str, Any], place: str, reading: Reading) -> list[Example]:
    """An example for each answer that has votes; options that come to the same tokens are one."""
    found: dict[tuple[int, ...], Example] = {}
    for option in parse_row(content, VotesRow, place).rows():
        for example in reading.examples(parse_row(option, Row, f"{place}: votes"), f"{place}: votes"):
            same = found.get(example.completion_ids)
            weight = example.weight + (same.weight if same else 0)
            found[example.completion_ids] = replace(example, weight=weight)
    return list(found.values())
