"""The file of rows on a real file system: who may read it, when it begins anew, and what a full disk leaves."""

import os
import resource
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from softspec.errors import ConfigError
from softspec.server.record.file import RowFile


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def loose_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """As on a disk that is full: what goes beyond so many bytes is not written."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.usefixtures("loose_umask")
def test_file_is_its_owners_alone_also_after_it_began_anew(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"

    file = RowFile(path, max_bytes=8, keep=2)
    for line in (b"one", b"two", b"three"):
        file.append(line)

    assert sorted(each.name for each in tmp_path.iterdir()) == ["rows.jsonl", "rows.jsonl.1"]
    assert {mode_of(each) for each in tmp_path.iterdir()} == {0o600}
    assert path.read_text() == "three\n"
    assert (tmp_path / "rows.jsonl.1").read_text() == "one\ntwo\n"


@pytest.mark.parametrize("keep", [0, 1, 3])
def test_as_many_older_files_are_kept_as_were_asked_for(tmp_path: Path, keep: int) -> None:
    file = RowFile(tmp_path / "rows.jsonl", max_bytes=4, keep=keep)
    for number in range(8):
        file.append(str(number).encode())

    found = {each.name: each.read_text() for each in tmp_path.iterdir()}
    assert found == {
        "rows.jsonl": "6\n7\n",
        **{f"rows.jsonl.{age}": f"{6 - 2 * age}\n{7 - 2 * age}\n" for age in range(1, keep + 1)},
    }


def test_row_larger_than_a_file_still_has_one(tmp_path: Path) -> None:
    file = RowFile(tmp_path / "rows.jsonl", max_bytes=4, keep=1)

    file.append(b"0123456789")

    assert file.path.read_text() == "0123456789\n"


def test_full_disk_leaves_no_half_of_a_row(tmp_path: Path) -> None:
    file = RowFile(tmp_path / "rows.jsonl", max_bytes=10**6, keep=1)
    file.append(b"whole")

    with files_of_at_most(10), pytest.raises(OSError, match="could be written"):
        file.append(b"0123456789")

    assert file.path.read_text() == "whole\n"
    file.append(b"again")
    assert file.path.read_text() == "whole\nagain\n"


def test_file_that_others_may_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.touch()
    path.chmod(0o640)

    with pytest.raises(ConfigError, match=r"mode 640\): run chmod 600"):
        RowFile(path, 100, 1)

    assert mode_of(path) == 0o640


def test_half_a_line_from_before_is_refused(tmp_path: Path) -> None:
    """Another row behind it would make one line of both, and training would read none of the file."""
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\n{"b"')
    path.chmod(0o600)

    with pytest.raises(ConfigError, match="ends in the middle of a line"):
        RowFile(path, 100, 1)


@pytest.mark.parametrize("name", ["missing/rows.jsonl", "."])
def test_place_that_cannot_be_written_is_refused_at_the_start(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="cannot be written"):
        RowFile(tmp_path / name, 100, 1)


def test_pipe_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "rows.jsonl", 0o600)

    with pytest.raises(ConfigError, match="is no file"):
        RowFile(tmp_path / "rows.jsonl", 100, 1)
