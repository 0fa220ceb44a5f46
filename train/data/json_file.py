"""Rows of one file of JSON: an object a line, or one list of objects; plain or packed by gzip, bzip2 or xz.

In: a path. Out: rows with their places, one at a time, each value as it was written. What another reader might guess,
such as dates in text, stays what it is; what cannot be meant, such as a key twice, is refused. Knows no keys of rows.
"""

import bz2
import gzip
import json
import lzma
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

from softspec.artefact.validation import as_key
from softspec.errors import DataError

PlacedRow = tuple[str, dict[str, Any]]
BOM = "\ufeff"
DEEPEST = 100
"""Levels of lists and objects in a row that are read."""
PACKED: dict[bytes, Callable[..., TextIO]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ\0": lzma.open,
}
"""First bytes of a packed file -> how it is opened."""
UTF_16 = "UTF-16, expected UTF-8: iconv -f UTF-16 -t UTF-8 FILE"
FOREIGN = {
    b"\xff\xfe": UTF_16,
    b"\xfe\xff": UTF_16,
    b"\x28\xb5\x2f\xfd": "packed by zstd, which is not read: zstd -d FILE",
    b"PK\x03\x04": "a zip archive, which is not read: unzip FILE",
    b"PAR1": "Parquet: give it the ending .parquet",
    b"ARROW1": "an Arrow file, which is not read: expected JSONL or Parquet",
    b"version https://git-lfs": "a pointer of Git LFS and not the data: git lfs pull",
    b"<!DOCTYPE": "a web page and not the data: download the file itself",
    b"<html": "a web page and not the data: download the file itself",
}
"""First bytes of a file that holds no JSON -> what it is, and what to do."""
TABLES = (".csv", ".tsv")
AS_JSONL = "pandas.read_csv(FILE, dtype=str).to_json('rows.jsonl', orient='records', lines=True)"


def read_json_file(path: Path) -> Iterator[PlacedRow]:
    """All rows, each with its place: `file:line`, or `file row N` of a list, N from 0.

    Raises:
        DataError: it cannot be read, or a row is no object of plain values.
    """
    if any(suffix.lower() in TABLES for suffix in path.suffixes[-2:]):
        raise DataError(f"'{path}' is a table of text, which is not read: make it JSONL, with {AS_JSONL}")
    if path.exists() and not path.is_file():
        raise DataError(f"'{path}' is neither a file nor a folder; expected a JSONL file")
    try:
        with _opened(path) as file:
            yield from _rows(file, str(path))
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"cannot read '{path}': {reason}; expected a JSONL file") from error


def _opened(path: Path) -> TextIO:
    """The file as text; bytes that are not UTF-8 become what no text has, to be told with their line."""
    with path.open("rb") as file:
        begin = file.read(max(map(len, FOREIGN)))
    for mark, what in FOREIGN.items():
        if begin.startswith(mark):
            raise DataError(f"'{path}' is {what.replace('FILE', str(path))}")
    opened = next((opened for mark, opened in PACKED.items() if begin.startswith(mark)), open)
    return opened(path, "rt", encoding="utf-8", errors="surrogateescape")


def _rows(file: TextIO, name: str) -> Iterator[PlacedRow]:
    has_begun = False
    for number, line in enumerate(file, start=1):
        text = line.removeprefix(BOM)
        if not text.strip():
            continue
        if not has_begun and text.lstrip().startswith("["):
            yield from _items(text + file.read(), name)
            return
        has_begun = True
        place = f"{name}:{number}"
        yield place, _as_row(_parse(text, place), place)


def _items(text: str, name: str) -> Iterator[PlacedRow]:
    """The rows of a file that is one list; all of it is in memory."""
    for number, item in enumerate(_parse(text, name)):
        place = f"{name} row {number}"
        yield place, _as_row(item, place)


def _parse(text: str, place: str) -> Any:
    try:
        text.encode()
        return json.loads(text, object_pairs_hook=_once)
    except UnicodeEncodeError as error:
        raise DataError(f"{place}: not UTF-8 at character {error.start + 1}") from error
    except json.JSONDecodeError as error:
        line = f"line {error.lineno}, " if error.lineno > 1 else ""
        is_cut = error.pos >= len(text.rstrip()) and text.lstrip().startswith("{")
        advice = "; expected a whole object on one line, as 'jq -c . FILE' writes it" if is_cut else ""
        raise DataError(f"{place}: not JSON: {error.msg} at {line}column {error.colno}{advice}") from error
    except RecursionError as error:
        raise DataError(f"{place}: nested more than {DEEPEST} levels deep") from error
    except ValueError as error:  # ours, and Python's about a number of thousands of digits
        raise DataError(f"{place}: not JSON: {str(error).split(';')[0]}") from error


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key '{as_key(twice)}' is there twice")
    return found


def _as_row(content: Any, place: str) -> dict[str, Any]:
    if not isinstance(content, dict):
        kind = "a list" if isinstance(content, list) else json.dumps(content)[:40]
        raise DataError(f"{place}: found {kind}, expected an object, one example a line")
    _check_text(content, place, ())
    return content


def _check_text(value: Any, place: str, path: tuple[str, ...]) -> None:
    """Refuse halves of surrogate pairs, which no tokenizer reads and no file holds, and endless nesting."""
    if len(path) > DEEPEST:
        raise DataError(f"{place}: nested more than {DEEPEST} levels deep")
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError as error:
            half = ascii(value[error.start])[1:-1]
            where = ".".join(map(as_key, path))
            raise DataError(f"{place}: {where}: {half} is half a character; expected whole ones") from error
    elif isinstance(value, dict):
        for key, inner in value.items():
            _check_text(key, place, (*path, "a key"))
            _check_text(inner, place, (*path, key))
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            _check_text(inner, place, (*path, str(number)))
