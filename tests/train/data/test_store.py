"""Units on disk: what comes out is what went in, and the file is nobody's business."""

import random
import tracemalloc
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pyarrow
import pytest

from softspec.train.data.units import Example, Preference, Unit, WithReference, in_batches
from tests.support.tiny_training import random_examples, stored

EXAMPLES = [
    *random_examples(),
    Example((2**31 - 1,), (0,), source="A", bundle="7", weight=1 / 3),
]
PAIRS = [
    Preference(first, second, bundle="7", weight=0.1, reference_margin=-1e-9)
    for first, second in pairwise(EXAMPLES)
]
KINDS = pytest.mark.parametrize("units", [EXAMPLES, PAIRS], ids=["examples", "preferences"])


@KINDS
def test_units_come_back_as_they_were_in_any_order(tmp_path: Path, units: list[Unit]) -> None:
    store = stored(units, tmp_path)
    order = random.Random(0).sample(range(len(units)), len(units))

    assert len(store) == len(units)
    assert list(store) == units
    assert [store[index] for index in order] == [units[index] for index in order]
    assert store[-1] == units[-1]


@KINDS
def test_batches_of_a_store_are_those_of_the_list(tmp_path: Path, units: list[Unit]) -> None:
    store = stored(units, tmp_path)

    assert list(in_batches(store, 3)) == list(in_batches(units, 3))
    assert store[1:-1:2] == units[1:-1:2]


def test_an_index_behind_the_end_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(IndexError):
        stored(EXAMPLES, tmp_path)[len(EXAMPLES)]


def test_a_store_of_many_batches_of_rows_reads_from_all_of_them(tmp_path: Path) -> None:
    count = 2_500

    store = stored((Example((number,), (number + 1,)) for number in range(count)), tmp_path)

    assert [store[index].prompt_ids for index in (0, 999, 1_000, 1_999, count - 1)] == [
        (0,), (999,), (1_000,), (1_999,), (count - 1,)
    ]  # fmt: skip


def test_tokens_stay_out_of_memory(tmp_path: Path) -> None:
    """Neither Python nor Arrow ever holds more than some batches of rows, here a tenth of 16 MB each."""
    before = pyarrow.total_allocated_bytes()
    tracemalloc.start()

    store = stored((Example((number,) * 400, (1,)) for number in range(10_000)), tmp_path)

    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert store[-1].prompt_ids == (9_999,) * 400
    assert peak + pyarrow.total_allocated_bytes() - before < 10_000 * 400 * 4 / 2


def test_nothing_is_left_in_the_folder_whatever_happens(tmp_path: Path) -> None:
    def fail() -> Iterator[Example]:
        yield from EXAMPLES
        raise ValueError("a bad row")

    store = stored(EXAMPLES, tmp_path)
    with pytest.raises(ValueError, match="a bad row"):
        stored(fail(), tmp_path)

    assert store[0] == EXAMPLES[0]
    assert not list(tmp_path.iterdir())


def test_pairs_of_a_store_get_what_the_base_makes_of_them(tmp_path: Path) -> None:
    margins = [float(number) for number in range(len(PAIRS))]

    pairs = WithReference(stored(PAIRS, tmp_path), margins)

    assert [pair.reference_margin for pair in pairs] == margins
    assert [pair.reference_margin for pair in pairs[2:4]] == margins[2:4]
    assert [pair.chosen for pair in pairs] == [pair.chosen for pair in PAIRS]
