"""Rows of answers to score: those of training, and prompts with several answers.

In: a file of JSON, and how training reads text. Out: prompts and answers as token ids, one row at a time, so that a
file of any length can be read. Knows no engine.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, model_validator

from softspec.ensemble.backend import Asked
from softspec.errors import DataError
from softspec.train.data.json_file import read_json_file
from softspec.train.data.messages import Message
from softspec.train.data.reading import Reading
from softspec.train.data.rows import LabelledRow, Row, parse_row


@dataclass(frozen=True)
class Survey:
    """What a file holds."""

    num_rows: int
    num_answers: int
    longest: int


class AnswersRow(LabelledRow):
    """A prompt, as text or as messages, and several answers to it."""

    prompt: str | list[Message] | None = None
    messages: list[Message] | None = None
    answers: Annotated[list[str], Field(min_length=1)]
    completion: Any = None

    @model_validator(mode="after")
    def _one_prompt(self) -> "AnswersRow":
        if self.completion is not None:
            raise ValueError("found 'answers' beside 'completion': expected one of the two")
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("expected either 'prompt' or 'messages' with 'answers'")
        return self

    def rows(self) -> Iterator[dict[str, Any]]:
        """A row of training for each answer."""
        prompt = self.prompt if self.messages is None else self.messages
        shared = self.model_dump(include={"tools", "chat_template_kwargs"}) | {"prompt": prompt}
        for answer in self.answers:
            is_text = isinstance(prompt, str)
            yield {**shared, "completion": answer if is_text else [{"role": "assistant", "content": answer}]}


def read_asked(data: Path, reading: Reading) -> Iterator[Asked]:
    """All rows in their order.

    Raises:
        DataError: the file cannot be read or has no rows, or a row is malformed; the message has its place.
    """
    is_empty = True
    for place, content in read_json_file(data):
        is_empty = False
        yield _asked(content, place, reading)
    if is_empty:
        raise DataError(f"{data}: no rows found; expected one row of a prompt and its answer a line")


def survey(data: Path, reading: Reading) -> Survey:
    """Read everything once, before an engine is started: what is wrong in the last row is said at once too.

    Raises:
        DataError: as `read_asked`, or some rows are longer than the base's context.
    """
    rows = answers = longest = num_long = 0
    where = ""
    for row in read_asked(data, reading):
        rows, answers = rows + 1, answers + len(row.answers)
        num_long += reading.context is not None and row.num_tokens > reading.context
        if row.num_tokens > longest:
            longest, where = row.num_tokens, row.place
    if num_long:
        raise DataError(
            f"{num_long} of {rows} rows {'is' if num_long == 1 else 'are'} longer than the {reading.context} tokens of "
            f"the base's context, the longest has {longest} tokens ({where}): shorten them, or leave them out"
        )
    for line in reading.notes.lines():
        reading.tell(line)
    return Survey(rows, answers, longest)


def _asked(content: Mapping[str, Any], place: str, reading: Reading) -> Asked:
    if content.get("answers") is None:
        (example,) = reading.examples(parse_row(content, Row, place), place)
        return Asked(place, example.prompt_ids, (example.completion_ids,))
    rows = [parse_row(each, Row, place) for each in parse_row(content, AnswersRow, place).rows()]
    examples = [example for row in rows for example in reading.examples(row, place)]
    return Asked(place, examples[0].prompt_ids, tuple(example.completion_ids for example in examples))
