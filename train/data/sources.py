"""Where rows come from: JSONL, Parquet, a directory of `Dataset.save_to_disk`, a folder of data files, or the hub.

In: what `train_file` or `eval_file` says. Out: rows as dictionaries with their places, one at a time. Knows no keys.
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from datasets import Dataset, load_dataset, load_from_disk
from datasets.config import DATASET_STATE_JSON_FILENAME, DATASETDICT_JSON_FILENAME
from datasets.exceptions import DatasetsError

from softspec.errors import DataError
from softspec.train.places import is_hub_id

SAVED = (DATASET_STATE_JSON_FILENAME, DATASETDICT_JSON_FILENAME)


def read_rows(
    data: str, split: str = "train", config_name: str | None = None
) -> Iterator[tuple[str, dict[str, Any]]]:
    """All rows, each with its place: `file:line`, or `name[split] row N` (without splits `name row N`), N from 0.

    Args:
        split, config_name: of a data set that has splits or configurations; a file has none.
    Raises:
        DataError: nothing is there, it cannot be read, a line is not an object, or there are no rows.
    """
    path = Path(data)
    if path.is_dir() or path.suffix == ".parquet" or (is_hub_id(data) and not path.exists()):
        rows = _dataset_rows(data, split, config_name)
    else:
        rows = _jsonl_rows(path)
    is_empty = True
    for place, row in rows:
        is_empty = False
        yield place, row
    if is_empty:
        raise DataError(f"{data}: no examples found; expected one example a line or row")


def _jsonl_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield f"{path}:{number}", _parse(line, f"{path}:{number}")
    except OSError as error:
        raise DataError(f"cannot read '{path}': {error.strerror}; expected a JSONL file") from error


def _parse(line: bytes, place: str) -> dict[str, Any]:
    try:
        content: Any = json.loads(line.decode())
    except UnicodeDecodeError as error:
        raise DataError(f"{place}: not UTF-8 at byte {error.start} of the line") from error
    except json.JSONDecodeError as error:
        raise DataError(f"{place}: not JSON: {error.msg} at column {error.colno}") from error
    if not isinstance(content, dict):
        raise DataError(f"{place}: found {type(content).__name__}, expected an object, one example a line")
    return content


def _dataset_rows(data: str, split: str, config_name: str | None) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        name, rows = _open(data, split, config_name)
        for number, row in enumerate(rows):
            yield f"{name} row {number}", _without_nulls(row)
    except (OSError, ValueError, RuntimeError, DatasetsError) as error:
        reason = str(error).split("\n")[0]
        raise DataError(
            f"cannot read '{data}': {reason}; expected a JSONL or Parquet file, a directory, or a hub id in reach"
        ) from error


def _open(data: str, split: str, config_name: str | None) -> tuple[str, Iterable[dict[str, Any]]]:
    """Rows and what they are called; what is here is read in place, what is not goes to the cache of `datasets`."""
    path, name = Path(data), f"{data}[{split}]"
    if path.suffix == ".parquet" and not path.is_dir():
        return data, load_dataset("parquet", data_files=data, split="train", streaming=True)
    if not any((path / marker).is_file() for marker in SAVED):
        return name, load_dataset(data, config_name, split=split, streaming=path.is_dir())
    saved = load_from_disk(data)
    if isinstance(saved, Dataset):
        return data, saved
    if split not in saved:
        raise ValueError(f"no split '{split}' among {', '.join(saved)}")
    return name, saved[split]


def _without_nulls(value: Any) -> Any:
    """The value without keys that are null: Arrow gives every row all keys, also those that were not in it."""
    if isinstance(value, dict):
        return {key: _without_nulls(inner) for key, inner in value.items() if inner is not None}
    return [_without_nulls(inner) for inner in value] if isinstance(value, list) else value
