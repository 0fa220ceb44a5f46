"""The scores file: what a model thinks of every row, written as it comes, gone on with where it was left.

In: records in the order of their rows. Out: JSONL, a header and then a line for each row. A baseline of whatever sort
is judged by writing such a file of the same data. Knows neither models nor metrics.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, BinaryIO, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from softspec.artefact.manifest import WeightsRule
from softspec.artefact.validation import first_problem
from softspec.errors import ConfigError, DataError
from softspec.evaluation.rows import LabelledChoices, Question
from softspec.maths.answer import AnswerUncertainty

EXACT = ConfigDict(extra="forbid", ser_json_inf_nan="constants")


class Header(BaseModel):
    """What all lines have in common; together with the data it decides every number in them.

    `model_digest` is of all that decides what the model says, `settings` of how it was asked. `log_weights` (K,) is the
    prior over members; models that are none have one member, and samples of a posterior are members that weigh alike.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    softspec_scores: Literal[1] = 1
    model: str = Field(min_length=1)
    model_kind: str = Field(min_length=1)
    model_digest: str
    log_weights: tuple[float, ...] = Field(min_length=1)
    weights_rule: WeightsRule = "prefix_posterior"
    data: str
    data_digest: str
    num_rows: int = Field(ge=1)
    settings: dict[str, Any] = Field(default_factory=dict)

    @property
    def num_members(self) -> int:
        return len(self.log_weights)


@dataclass(frozen=True)
class Generated:
    """The answer that the model gave by itself, and whether it is one of the references: as it is, and normalised."""

    text: str
    exact: bool
    normalised: bool
    uncertainty: AnswerUncertainty


@dataclass(frozen=True, kw_only=True)
class Record(LabelledChoices):
    """One row, C choices, K members. Log-probabilities are of whole answers with their end, in nats.

    `log_probs` (C,) under the mixture, `member_log_probs` (K, C), `num_tokens` (C,).
    """

    __pydantic_config__ = EXACT

    log_probs: tuple[float, ...]
    member_log_probs: tuple[tuple[float, ...], ...]
    num_tokens: tuple[int, ...]
    generated: Generated | None = None

    def __post_init__(self) -> None:
        of_choices = (self.log_probs, self.num_tokens, *self.member_log_probs)
        if any(len(values) != len(self.choices) for values in of_choices) or not self.member_log_probs:
            raise ValueError(f"row {self.row}: expected numbers for each of {len(self.choices)} choices")
        if any(math.isnan(value) for values in (self.log_probs, *self.member_log_probs) for value in values):
            raise ValueError(f"row {self.row}: a log-probability is not a number: the model is broken")


RECORD = TypeAdapter(Record)


def record_of(
    question: Question,
    log_probs: tuple[float, ...],
    member_log_probs: tuple[tuple[float, ...], ...],
    num_tokens: tuple[int, ...],
    generated: Generated | None = None,
) -> Record:
    """The record of a question whose choices were scored."""
    labels = {each.name: getattr(question, each.name) for each in fields(LabelledChoices)}
    return Record(
        **labels,
        log_probs=log_probs,
        member_log_probs=member_log_probs,
        num_tokens=num_tokens,
        generated=generated,
    )


class ScoresWriter:
    """A scores file that is being written; a run that ended early is gone on with, from its last whole line.

    `num_done` rows are in it already; records of the rows after them are to be added in their order.

    Raises:
        ConfigError: the file is there and is not of this model, data and settings, and `overwrite` is not given.
    """

    def __init__(self, path: Path, header: Header, overwrite: bool = False) -> None:
        if not path.parent.is_dir():
            raise ConfigError(f"there is no directory '{path.parent}' for the scores: make it first")
        self.header, self.num_done = header, 0
        if path.exists() and not overwrite and (whole := _whole_lines(path)) is not None:
            _require_same(path, header)
            self._file: BinaryIO = path.open("r+b")
            self._file.truncate(whole)
            self._file.seek(whole)
            self.num_done = _count_lines(path) - 1
            return
        self._file = path.open("wb")
        self._write(header.model_dump_json())

    def add(self, record: Record) -> None:
        """Write the record of the next row; it is on disk when this returns, as far as the system says."""
        if record.row != self.num_done:
            raise ValueError(f"record of row {record.row} where row {self.num_done} comes next")
        if len(record.member_log_probs) != self.header.num_members:
            raise ValueError(
                f"row {record.row}: {len(record.member_log_probs)} members, {self.header.num_members} weights"
            )
        self._write(RECORD.dump_json(record, exclude_none=True).decode())
        self.num_done += 1

    def _write(self, line: str) -> None:
        self._file.write(f"{line}\n".encode())
        self._file.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def read_header(path: Path) -> Header:
    """The first line of a scores file.

    Raises:
        DataError: it cannot be read, or is none.
    """
    try:
        with path.open("rb") as file:
            return Header.model_validate_json(file.readline())
    except OSError as error:
        raise DataError(
            f"cannot read '{path}': {error.strerror}; expected scores of 'softspec evaluate'"
        ) from error
    except ValidationError as error:
        raise DataError(
            f"'{path}' is no file of scores: {first_problem(error)}; expected one of 'softspec evaluate'"
        ) from error


def read_records(path: Path) -> Iterator[Record]:
    """All records of a complete scores file, one at a time.

    Raises:
        DataError: it cannot be read, a line is malformed, or rows are missing.
    """
    header = read_header(path)
    number = 0
    with path.open("rb") as file:
        file.readline()
        for number, line in enumerate(file, start=1):
            try:
                record = RECORD.validate_json(line)
            except ValidationError as error:
                raise DataError(
                    f"{path}:{number + 1}: {first_problem(error)}; delete the file and score again"
                ) from error
            if record.row != number - 1 or len(record.member_log_probs) != header.num_members:
                raise DataError(
                    f"{path}:{number + 1}: found row {record.row} of {len(record.member_log_probs)} members, "
                    f"expected row {number - 1} of {header.num_members}; delete the file and score again"
                )
            yield record
    if number != header.num_rows:
        raise DataError(
            f"'{path}' has {number} of {header.num_rows} rows: run the command that wrote it again to go on"
        )


def _require_same(path: Path, header: Header) -> None:
    """Refuse to go on with scores of something else, and say of what."""
    try:
        found = read_header(path)
    except DataError as error:
        raise ConfigError(f"{error}; name another file, or give --overwrite") from error
    wanted, there = header.model_dump(), found.model_dump()
    for key, what in (("data_digest", "other data"), ("model_digest", "another model")):
        if wanted[key] != there[key]:
            name = "data" if key == "data_digest" else "model"
            raise ConfigError(
                f"'{path}' has scores of {what} ({there[name]}, not {wanted[name]}, or changed since): "
                "name another file, or give --overwrite"
            )
    keys = ("settings", "num_rows", "log_weights", "weights_rule", "model_kind")
    for key in keys:
        if wanted[key] != there[key]:
            raise ConfigError(
                f"'{path}' was scored with {key} {there[key]}, not {wanted[key]}: "
                "name another file, or give --overwrite"
            )


def _whole_lines(path: Path) -> int | None:
    """Bytes up to the end of the last whole line; None if there is none, as if the file were not there."""
    end = 0
    with path.open("rb") as file:
        for line in file:
            end += len(line) if line.endswith(b"\n") else 0
        if end == 0 and file.tell() > 0:
            _refuse_foreign(path)
    return end or None


def _refuse_foreign(path: Path) -> None:
    """A file without one whole line is ours only if it begins as a header does."""
    with path.open("rb") as file:
        begin = file.read(20)
    if not b'{"softspec_scores":1'.startswith(begin[:20]):
        raise ConfigError(f"'{path}' is no file of scores: name another file, or give --overwrite")


def _count_lines(path: Path) -> int:
    with path.open("rb") as file:
        return sum(1 for _ in file)
