"""Units on disk: the trainer sees a sequence, and memory holds what it asks for.

In: `Example`s or `Preference`s, one at a time. Out: the same by index. Knows neither files of rows nor tokenizers.
"""

import mmap
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import IO, Any, cast, overload

import pyarrow
from datasets import Dataset, Features, List, Value
from datasets.arrow_writer import ArrowWriter

from softspec.train.data.units import Example, Preference, Unit, UnitT

_LABELS = {"bundle": Value("string"), "weight": Value("float64")}
_TOKENS = List(Value("int32"))
_EXAMPLE = {"prompt_ids": _TOKENS, "completion_ids": _TOKENS, "source": Value("string"), **_LABELS}
FEATURES = {
    Example: Features(_EXAMPLE),
    Preference: Features(
        {"chosen": _EXAMPLE, "rejected": _EXAMPLE, **_LABELS, "reference_margin": Value("float64")}
    ),
}


class Store(Sequence[UnitT]):
    """Units of one kind in one memory-mapped Arrow file."""

    def __init__(self, file: IO[bytes]) -> None:
        """Map the file that `write_units` has written, by this process or another; it may be closed afterwards."""
        content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        table = pyarrow.ipc.open_stream(pyarrow.py_buffer(content)).read_all()
        # Without a fingerprint it would hash a copy of all rows.
        self._rows = Dataset(table, fingerprint="units")

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> UnitT: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[UnitT]: ...
    def __getitem__(self, index: int | slice) -> UnitT | Sequence[UnitT]:
        if isinstance(index, slice):
            return [self[each] for each in range(len(self))[index]]
        return cast("UnitT", _to_unit(self._rows[index]))


def write_units(units: Iterable[Unit], file: IO[bytes]) -> None:
    """Write `units`, at least one and all of one kind, to an empty file, for `Store` to map."""
    units = iter(units)
    first = next(units)
    with ArrowWriter(features=FEATURES[type(first)], stream=file) as writer:
        for unit in chain([first], units):
            writer.write(_to_row(unit))
        writer.finalize(close_stream=False)
    file.flush()


def _to_row(unit: Unit) -> dict[str, Any]:
    return {key: _to_row(value) if isinstance(value, Example) else value for key, value in vars(unit).items()}


def _to_unit(row: dict[str, Any]) -> Unit:
    if "chosen" not in row:
        return _to_example(row)
    completions = {key: _to_example(row[key]) for key in ("chosen", "rejected")}
    return Preference(**{**row, **completions})


def _to_example(row: dict[str, Any]) -> Example:
    tokens = {key: tuple(row[key]) for key in ("prompt_ids", "completion_ids")}
    return Example(**{**row, **tokens})
