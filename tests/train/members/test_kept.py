"""Kept tensors: whole or not there, bounded in size, and shared by whoever comes."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from softspec.train.members.kept import Kept


def filled(folder: Path, count: int = 4) -> Kept:
    """Tensors of one size under the keys 0, 1, ..., of which 0 was used first."""
    kept = Kept(folder)
    for number in range(count):
        kept.write(str(number), {"x": torch.full((100,), float(number))})
        os.utime(next(folder.glob(f"*/{number}")), (number, number))
    return kept


def names(folder: Path) -> list[str]:
    """What is there."""
    return sorted(path.name for path in folder.glob("*/*"))


def test_what_was_used_longest_ago_goes_first_and_what_is_needed_stays(tmp_path: Path) -> None:
    kept = filled(tmp_path)
    size = kept.use({"1"})

    kept.make_room(size, 3 * size, {"0"})

    assert names(tmp_path) == ["0", "1"]


def test_nothing_goes_while_there_is_room(tmp_path: Path) -> None:
    kept = filled(tmp_path)

    kept.make_room(1000, 10**6, set())

    assert names(tmp_path) == ["0", "1", "2", "3"]


def test_what_a_dead_process_left_half_written_goes_with_the_oldest(tmp_path: Path) -> None:
    kept = filled(tmp_path, count=1)
    rest = next(tmp_path.glob("*/0")).with_name("x.new")
    rest.write_bytes(b"x" * 50)
    os.utime(rest, (0, 0))
    os.utime(next(tmp_path.glob("*/0")), (9, 9))

    kept.make_room(0, 500, set())

    assert names(tmp_path) == ["0"]


def test_writers_at_once_leave_whole_tensors(tmp_path: Path) -> None:
    def write_and_read(number: int) -> bool:
        kept = Kept(tmp_path)
        kept.write("key", {"x": torch.arange(100_000)})
        found = kept.read("key")
        return found is not None and torch.equal(found["x"], torch.arange(100_000))

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(write_and_read, range(40)))
    assert names(tmp_path) == ["key"]
