"""Where rows come from: a file of JSON, Parquet, a directory of `Dataset.save_to_disk`, a folder of files, or the hub.

In: what `train_file` or `eval_file` says. Out: rows as dictionaries with their places, one at a time. Knows no keys.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from datasets import Dataset, load_dataset, load_dataset_builder, load_from_disk
from datasets.config import DATASET_STATE_JSON_FILENAME, DATASETDICT_JSON_FILENAME
from datasets.packaged_modules.json.json import JsonConfig

from softspec.errors import DataError, SoftspecError
from softspec.train.data.json_file import PlacedRow, read_json_file
from softspec.train.places import is_hub_id

PARQUET = (".parquet", ".pq")
EXPECTED = "expected a JSONL or Parquet file, a directory, or a hub id in reach"
MOST_SHOWN = 300


def read_rows(data: str, split: str = "train", config_name: str | None = None) -> Iterator[PlacedRow]:
    """All rows, each with its place: `file:line`, or `name[split] row N` (without splits `name row N`), N from 0.

    Args:
        split, config_name: of a data set that has splits or configurations; where `has_splits` says no they are
            without a meaning.
    Raises:
        DataError: nothing is there, it cannot be read, a row is not an object, or there are no rows.
    """
    path = Path(data)
    if path.is_dir() or is_parquet(path) or (is_hub_id(data) and not path.exists()):
        rows = _dataset_rows(data, split, config_name)
    else:
        rows = read_json_file(path)
    is_empty = True
    for place, row in rows:
        is_empty = False
        yield place, row
    if is_empty:
        raise DataError(f"{data}: no examples found; expected one example a line or row")


def is_parquet(path: Path) -> bool:
    """Whether a path is that of a Parquet file."""
    return path.suffix.lower() in PARQUET and not path.is_dir()


def has_splits(data: str) -> bool:
    """Whether data may have splits and configurations: not so one file, and not one saved `Dataset`."""
    path = Path(data)
    is_one_file = not path.is_dir() and (path.exists() or not is_hub_id(data))
    return not is_one_file and not (path / DATASET_STATE_JSON_FILENAME).is_file()


def _dataset_rows(data: str, split: str, config_name: str | None) -> Iterator[PlacedRow]:
    try:
        if files := _json_files(data, split, config_name):
            for file in files:
                yield from read_json_file(Path(file))
            return
        name, rows = _open(data, split, config_name)
        for number, row in enumerate(rows):
            yield f"{name} row {number}", _without_nulls(row)
    except SoftspecError:
        raise
    except Exception as error:  # of many libraries and kinds, about whatever the files hold
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"cannot read '{data}': {reason[:MOST_SHOWN]}; {EXPECTED}") from error


def _json_files(data: str, split: str, config_name: str | None) -> list[str]:
    """The files of one split of a folder of JSON, which are read as they are written; none of other data."""
    path = Path(data)
    if not path.is_dir() or _is_saved(path):
        return []
    config = load_dataset_builder(data, config_name).config
    if not isinstance(config, JsonConfig) or config.field:
        return []
    files = {str(name): list(files) for name, files in config.data_files.items()}
    if split not in files:
        raise ValueError(f"no split '{split}' among {', '.join(files)}")
    return files[split]


def _is_saved(path: Path) -> bool:
    return any(
        (path / marker).is_file() for marker in (DATASET_STATE_JSON_FILENAME, DATASETDICT_JSON_FILENAME)
    )


def _open(data: str, split: str, config_name: str | None) -> tuple[str, Iterable[dict[str, Any]]]:
    """Rows and what they are called; what is here is read in place, what is not goes to the cache of `datasets`."""
    path, name = Path(data), f"{data}[{split}]"
    if is_parquet(path):
        return data, load_dataset("parquet", data_files=data, split="train", streaming=True)
    if not _is_saved(path):
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
