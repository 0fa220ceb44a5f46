"""Where rows come from: the same rows in every form that `datasets` reads, and what is said where there are none."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, DatasetDict, load_dataset

from softspec.errors import DataError
from softspec.train.data.sources import read_rows
from tests.support.tiny_training import chat_rows, write_rows

ROWS: list[dict[str, Any]] = [
    *chat_rows(3),
    {"prompt": "2 + 2 =", "votes": {" 4": 3, " 5": 0.5}, "weight": 2.0},
    {"prompt": "2 + 3 =", "votes": {" 6": 1}, "group": "sums"},
]
HELD_OUT = chat_rows(1)
CARD = """---
configs:
- config_name: default
  data_files:
  - {split: train, path: data/train-*}
  - {split: test, path: data/test-*}
- config_name: small
  data_files:
  - {split: train, path: data/test-*}
---
"""


def dataset(rows: list[dict[str, Any]]) -> Dataset:
    """A table has a value of every key in every row."""
    keys = {key: None for row in ROWS for key in row}
    return Dataset.from_list([{**keys, **row} for row in rows])


def jsonl(folder: Path) -> Path:
    return write_rows(folder / "rows.jsonl", ROWS)


def parquet(folder: Path) -> Path:
    path = folder / "rows.parquet"
    dataset(ROWS).to_parquet(path)
    return path


def saved(folder: Path) -> Path:
    dataset(ROWS).save_to_disk(folder / "saved")
    return folder / "saved"


def saved_splits(folder: Path) -> Path:
    splits = {"train": dataset(ROWS), "test": dataset(HELD_OUT)}
    DatasetDict(splits).save_to_disk(folder / "splits")
    return folder / "splits"


def repository(folder: Path) -> Path:
    """A folder as a data set on the hub is: a card, and Parquet files of splits and configurations."""
    path = folder / "name"
    (path / "data").mkdir(parents=True)
    (path / "README.md").write_text(CARD)
    dataset(ROWS).to_parquet(path / "data" / "train-00000-of-00001.parquet")
    dataset(HELD_OUT).to_parquet(path / "data" / "test-00000-of-00001.parquet")
    return path


def contents(data: Path | str, *options: str) -> list[dict[str, Any]]:
    return [row for _, row in read_rows(str(data), *options)]


@pytest.mark.parametrize("write", [jsonl, parquet, saved, saved_splits, repository])
def test_every_form_gives_the_same_rows(tmp_path: Path, write: Callable[[Path], Path]) -> None:
    """A key that only some rows have stays with them, although Arrow gives it to all."""
    assert contents(write(tmp_path)) == ROWS


@pytest.mark.parametrize("write", [saved_splits, repository])
def test_a_split_can_be_chosen(tmp_path: Path, write: Callable[[Path], Path]) -> None:
    assert contents(write(tmp_path), "test") == HELD_OUT


def test_a_configuration_can_be_chosen(tmp_path: Path) -> None:
    assert contents(repository(tmp_path), "train", "small") == HELD_OUT


@pytest.mark.parametrize(
    ("write", "place"),
    [
        (jsonl, "rows.jsonl:1"),
        (parquet, "rows.parquet row 0"),
        (saved, "saved row 0"),
        (saved_splits, "splits[test] row 0"),
        (repository, "name[test] row 0"),
    ],
)
def test_a_place_names_the_row(tmp_path: Path, write: Callable[[Path], Path], place: str) -> None:
    first, _ = next(read_rows(str(write(tmp_path)), "test"))

    assert first == f"{tmp_path}/{place}"


def test_a_data_set_of_the_hub_is_found_in_the_cache_of_datasets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if it had been downloaded: this is the road of a hub id, up to the network."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    prepared = load_dataset(str(repository(tmp_path)), split="train").cache_files[0]["filename"]
    cached = tmp_path / "cache" / "owner___name" / "default" / "0.0.0"
    cached.mkdir(parents=True)
    shutil.copytree(Path(prepared).parent, cached / "revision")

    rows = list(read_rows("owner/name"))

    assert rows[3] == ("owner/name[train] row 3", ROWS[3])


def missing(folder: Path) -> Path:
    return folder / "missing.parquet"


def broken(folder: Path) -> Path:
    (folder / "broken.parquet").write_text("no Parquet")
    return folder / "broken.parquet"


def empty(folder: Path) -> Path:
    (folder / "empty").mkdir()
    return folder / "empty"


@pytest.mark.parametrize(
    ("write", "options", "message"),
    [
        (missing, (), "Unable to find"),
        (broken, (), "Parquet"),
        (empty, (), "doesn't contain any data files"),
        (saved_splits, ("dev",), "no split 'dev' among train, test"),
        (repository, ("dev",), r"Available splits: \['train', 'test'\]"),
        (repository, ("train", "big"), "'big' not found. Available: .*'small'"),
    ],
)
def test_what_cannot_be_read_is_one_clear_line(
    tmp_path: Path, write: Callable[[Path], Path], options: tuple[str, ...], message: str
) -> None:
    path = write(tmp_path)

    with pytest.raises(DataError, match=message) as error:
        contents(path, *options)

    assert str(error.value).startswith(f"cannot read '{path}': ")
    assert "expected a JSONL or Parquet file, a directory, or a hub id in reach" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_hub_that_cannot_be_reached_is_one_clear_line() -> None:
    with pytest.raises(DataError, match="cannot read 'owner/nothing': Couldn't reach") as error:
        contents("owner/nothing")

    assert "\n" not in str(error.value)


def test_a_line_that_is_not_utf_8_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"prompt": "a"}\n{"prompt": "\xff"}\n')

    with pytest.raises(DataError, match=r"rows\.jsonl:2: not UTF-8 at byte 12"):
        contents(path)


def test_no_rows_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    dataset(ROWS).select([]).to_parquet(path)

    with pytest.raises(DataError, match=r"rows\.parquet: no examples found"):
        contents(path)
