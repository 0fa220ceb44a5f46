"""Any file of rows gives units or one line with a place: random JSON under the keys that rows have, and random bytes.

Nothing is lost: what is read is as many units as there are rows, or the file is refused.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from softspec.errors import DataError
from softspec.train.data.preferences import read_preferences
from softspec.train.data.reading import Reading, read_examples
from softspec.train.data.sources import read_rows
from softspec.train.data.units import Unit
from tests.support.tiny import tiny_tokenizer
from tests.support.tiny_training import stored

TOKENIZER = tiny_tokenizer()
READING = Reading(TOKENIZER, {TOKENIZER.eos_token_id}, 500, tell=lambda line: None)
READERS: list[Callable[..., Iterator[Unit]]] = [read_examples, read_preferences]

SCALARS = st.sampled_from(
    [
        *(None, True, False, 0, 1, -1, 7, 10**30, 0.5, 1e308, 1e-320, float("nan"), float("inf")),
        *(
            "",
            " ",
            "Yes",
            "Yes ",
            "No",
            "7",
            "\ud83d",
            "😀",
            "\0",
            "<|im_end|>",
            "assistant",
            "user",
            "system",
            "tool",
        ),
        '[{"role": "user", "content": "Hi"}]',
    ]
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=3,
)
ROLES = st.sampled_from(["user", "assistant", "system", "tool"])
TEXTS = st.sampled_from(["Hi", "Yes", "Yes ", "No", "é😀"])
TURN = st.fixed_dictionaries(
    {"role": ROLES | VALUES, "content": TEXTS | VALUES},
    optional={"name": VALUES, "tool_calls": VALUES, "weight": VALUES},
)
TURNS = st.lists(TURN, max_size=4)
GOOD_TURNS = st.builds(
    lambda question, answer: [
        {"role": "user", "content": question},
        {"role": "assistant", "content": answer},
    ],
    TEXTS,
    TEXTS,
)
FIELD = TEXTS | GOOD_TURNS | TURNS | VALUES
LABELS = {
    "source": VALUES,
    "group": VALUES,
    "weight": st.sampled_from([1, 0.5]) | VALUES,
    "tools": VALUES,
    "chat_template_kwargs": VALUES,
    "prompt_id": VALUES,
}
ROW = st.fixed_dictionaries(
    {},
    optional={
        **dict.fromkeys(("messages", "prompt", "completion", "chosen", "rejected"), FIELD),
        "votes": st.dictionaries(TEXTS, st.integers(0, 3) | VALUES, max_size=3) | VALUES,
        **LABELS,
    },
)
GOOD_ROW = st.one_of(
    *(
        st.fixed_dictionaries(dict.fromkeys(keys, TEXTS), optional=LABELS)
        for keys in (("prompt", "completion"), ("prompt", "chosen", "rejected"))
    ),
    st.fixed_dictionaries({"messages": GOOD_TURNS, "chosen": GOOD_TURNS, "rejected": GOOD_TURNS}),
    st.fixed_dictionaries({"prompt": TEXTS, "votes": st.dictionaries(TEXTS, st.integers(1, 3), min_size=1)}),
)
ROWS = st.lists(ROW | GOOD_ROW, min_size=1, max_size=3)


def units_of(path: Path, read: Callable[..., Iterator[Unit]]) -> list[Unit] | None:
    """What a file gives, from a store as a run has it; None where it was refused in one line with its place."""
    try:
        return list(stored(read(read_rows(str(path)), READING), path.parent))
    except DataError as error:
        message = str(error)
    assert message.isprintable()
    assert str(path) in message
    return None


def check_rows(rows: list[Any]) -> None:
    """One file of rows, read as examples and as preferences."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        for read in READERS:
            units = units_of(path, read)
            assert units is None or len(units) >= len(rows)
            assert units is None or all(each.completion_ids for unit in units for each in unit.completions)


def check_bytes(content: bytes) -> None:
    """One file of anything."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        path.write_bytes(content)
        for read in READERS:
            units_of(path, read)


LINES = ROWS.map(lambda rows: "\n".join(json.dumps(row) for row in rows).encode())
BYTES = st.binary(max_size=40) | st.builds(
    lambda text, place, bits: text[:place] + bits + text[place + len(bits) :],
    LINES,
    st.integers(0, 200),
    st.binary(min_size=1, max_size=3),
)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(ROWS)
def test_any_rows_are_units_or_one_line_with_a_place(rows: list[Any]) -> None:
    check_rows(rows)


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(BYTES)
def test_any_bytes_are_units_or_one_line(content: bytes) -> None:
    check_bytes(content)


@pytest.mark.soak
@pytest.mark.slow
@settings(max_examples=20_000, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(ROWS)
def test_many_rows_are_units_or_one_line_with_a_place(rows: list[Any]) -> None:
    check_rows(rows)


@pytest.mark.soak
@pytest.mark.slow
@settings(max_examples=10_000, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(BYTES)
def test_many_bytes_are_units_or_one_line(content: bytes) -> None:
    check_bytes(content)
