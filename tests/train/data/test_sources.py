"""Where rows come from: the same rows in every form that `datasets` reads, and what is said where there are none."""

import bz2
import gzip
import json
import lzma
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, DatasetDict, load_dataset

from softspec.errors import DataError
from softspec.train.data.sources import has_splits, read_rows
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


def packed(folder: Path) -> Path:
    (folder / "rows.jsonl.gz").write_bytes(gzip.compress(jsonl(folder).read_bytes()))
    return folder / "rows.jsonl.gz"


def bzip2(folder: Path) -> Path:
    """What it is packed with is seen in the bytes; the ending says nothing of it."""
    (folder / "rows.json").write_bytes(bz2.compress(jsonl(folder).read_bytes()))
    return folder / "rows.json"


def xz(folder: Path) -> Path:
    (folder / "rows.jsonl.xz").write_bytes(lzma.compress(jsonl(folder).read_bytes()))
    return folder / "rows.jsonl.xz"


def with_mark(folder: Path) -> Path:
    path = folder / "rows.jsonl"
    path.write_text(jsonl(folder).read_text(), encoding="utf-8-sig")
    return path


def mac_lines(folder: Path) -> Path:
    path = jsonl(folder)
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r"))
    return path


def windows_lines(folder: Path) -> Path:
    path = jsonl(folder)
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    return path


def json_list(folder: Path) -> Path:
    (folder / "rows.json").write_text("\n" + json.dumps(ROWS, indent=1))
    return folder / "rows.json"


def folder_of_json(folder: Path) -> Path:
    """Files whose rows have other keys, one of them packed, in the folders that splits are known by."""
    for split in ("train", "test"):
        (folder / "name" / split).mkdir(parents=True)
    write_rows(folder / "name" / "train" / "a.jsonl", ROWS[:3])
    with gzip.open(folder / "name" / "train" / "b.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in ROWS[3:])
    write_rows(folder / "name" / "test" / "c.jsonl", HELD_OUT)
    return folder / "name"


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


FILES = [jsonl, packed, bzip2, xz, with_mark, mac_lines, windows_lines, json_list, parquet]


@pytest.mark.parametrize("write", [*FILES, saved, saved_splits, repository, folder_of_json])
def test_every_form_gives_the_same_rows(tmp_path: Path, write: Callable[[Path], Path]) -> None:
    """A key that only some rows have stays with them, although Arrow gives it to all."""
    assert contents(write(tmp_path)) == ROWS


@pytest.mark.parametrize("write", [saved_splits, repository, folder_of_json])
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
        (folder_of_json, "name/test/c.jsonl:1"),
        (json_list, "rows.json row 0"),
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
        (folder_of_json, ("dev",), "no split 'dev' among train, test"),
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

    with pytest.raises(DataError, match=r"rows\.jsonl:2: not UTF-8 at character 13"):
        contents(path)


@pytest.mark.parametrize(
    "number", ["1", "01", "1.0", "1e5", "2024-05-01", "2024-05-01T10:00:00Z", "NaN", "null"]
)
def test_text_that_looks_like_something_else_stays_text(tmp_path: Path, number: str) -> None:
    (tmp_path / "folder").mkdir()
    path = write_rows(tmp_path / "folder" / "rows.jsonl", [{"prompt": number, "completion": number}])

    assert contents(path) == contents(path.parent) == [{"prompt": number, "completion": number}]


DEEP = '{"a": ' * 5000 + "1" + "}" * 5000


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"a": "cut \\ud83d"}', ":1: a: \\ud83d is half a character; expected whole ones"),
        ('{"a": [1, {"b": "\\udc00"}]}', ":1: a.1.b: \\udc00 is half"),
        ('{"source": "\\ud83d\\ud83d"}', ":1: source: \\ud83d is half"),
        ('{"\\ud83d": 1}', ":1: a key: \\ud83d is half"),
        ('{"a": ' + "1" * 5000 + "}", ":1: not JSON: Exceeds the limit"),
        (DEEP, ":1: nested more than 100 levels deep"),
        ('{"a": ' + "[" * 200 + "]" * 200 + "}", ":1: nested more than 100 levels deep"),
        ("[" * 5000, "rows.jsonl: nested more than 100 levels deep"),
        ('{"a": 1, "a": 2}', ":1: not JSON: the key 'a' is there twice"),
        ('{"a": {"b": 1, "b\\u0000": 2, "b\\u0000": 3}}', "the key '\"b\\u0000\"' is there twice"),
        ('{"a": 1}\n{\n  "a": 1\n}\n', ":2: not JSON: Expecting property name"),
        ('{\n  "a": 1\n}\n', "expected a whole object on one line, as 'jq -c . FILE' writes it"),
        ('{"a": 1} {"a": 2}', ":1: not JSON: Extra data at column 10"),
        ('[{"a": 1}, 5]', "rows.jsonl row 1: found 5, expected an object"),
        ('[{"a": 1}\n', "rows.jsonl: not JSON: "),
        ('{"a": 1}\n[1, 2]', ":2: found a list, expected an object"),
        ('{"a": 1}\n"text"', ':2: found "text", expected an object'),
        ("[]", "no examples found"),
        ("\n \n", "no examples found"),
        ("\0\0\0", ":1: not JSON"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_its_place(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(content)

    with pytest.raises(DataError) as error:
        contents(path)

    assert message in str(error.value)
    assert str(error.value).startswith(str(path))
    assert str(error.value).isprintable()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("rows.csv", b"prompt,completion\n1,2\n", "is a table of text, which is not read: make it JSONL"),
        ("rows.tsv.gz", gzip.compress(b"prompt\tcompletion\n", mtime=0), "is a table of text"),
        ("rows.jsonl", json.dumps(ROWS[0]).encode("utf-16"), "is UTF-16, expected UTF-8: iconv -f UTF-16"),
        ("rows.zst", b"\x28\xb5\x2f\xfd....", "is packed by zstd, which is not read: zstd -d"),
        ("rows.zip", b"PK\x03\x04....", "is a zip archive"),
        ("rows.json", b"PAR1....", "is Parquet: give it the ending .parquet"),
        ("rows.jsonl", b"version https://git-lfs.github.com/spec/v1\noid", "is a pointer of Git LFS"),
        ("rows.jsonl", b"<!DOCTYPE html><html>", "is a web page and not the data"),
        ("rows.gz", gzip.compress(b'{"a": 1}\n' * 9999, mtime=0)[:60], "cannot read"),
        ("rows.gz", gzip.compress(b'{"a": 1}\n', mtime=0)[:-6] + b"xxxxxx", "cannot read"),
        ("rows.xz", lzma.compress(b'{"a": 1}\n' * 9999)[:40] + b"xxxxxxxx", "cannot read"),
        ("rows.bz2", b"BZh9garbage", "cannot read"),
    ],
)
def test_a_file_of_another_kind_is_named_with_what_to_do(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)

    with pytest.raises(DataError) as error:
        contents(path)

    assert message in str(error.value)
    assert f"'{path}'" in str(error.value)
    assert str(error.value).isprintable()


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jsonl")

    with pytest.raises(DataError, match="is neither a file nor a folder"):
        contents(tmp_path / "pipe.jsonl")


@pytest.mark.parametrize(
    ("write", "answer"),
    [*((write, False) for write in FILES), (saved, False), (saved_splits, True), (repository, True)],
)
def test_only_folders_and_the_hub_have_splits(
    tmp_path: Path, write: Callable[[Path], Path], answer: bool
) -> None:
    assert has_splits(str(write(tmp_path))) is answer
    assert has_splits("owner/name")
    assert not has_splits("owner/name.parquet")


def test_no_rows_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    dataset(ROWS).select([]).to_parquet(path)

    with pytest.raises(DataError, match=r"rows\.parquet: no examples found"):
        contents(path)
