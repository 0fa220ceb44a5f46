"""The scores file: what is written is what is read, and an interrupted run goes on where it was."""

import math
from pathlib import Path

import pytest

from softspec.errors import ConfigError, DataError
from softspec.evaluation.records import (
    Generated,
    Header,
    Record,
    ScoresWriter,
    read_header,
    read_records,
)
from softspec.maths.answer import summarise


def header(**changes: object) -> Header:
    known = {
        "model": "my",
        "model_kind": "ensemble",
        "model_digest": "m",
        "log_weights": (math.log(0.5), math.log(0.5)),
        "data": "d.jsonl",
        "data_digest": "d",
        "num_rows": 3,
        "settings": {"backend": "transformers"},
    }
    return Header.model_validate({**known, **changes})


def record(row: int = 0, **changes: object) -> Record:
    known = {
        "row": row,
        "form": "choices",
        "item": "i",
        "choices": ("ja", "größer"),
        "log_probs": (-1.25, -2.0),
        "member_log_probs": ((-1.0, -math.inf), (-1.5, -1.3)),
        "num_tokens": (2, 3),
        "ratings": {"a": (0, 1)},
        "votes": (1.0, 0.0),
    }
    return Record(**{**known, **changes})  # type: ignore[arg-type]


def write(path: Path, *records: Record, **changes: object) -> None:
    with ScoresWriter(path, header(**changes)) as writer:
        for each in records:
            writer.add(each)


def test_what_is_written_is_what_is_read(tmp_path: Path) -> None:
    path = tmp_path / "scores.jsonl"
    given = Generated("Paris", exact=False, normalised=True, uncertainty=summarise([], [0.0, -1.0]))
    records = [
        record(0),
        record(1, answer=0, kind="conflict", weight=2.5),
        record(2, generated=given, form="generation"),
    ]

    write(path, *records)

    assert read_header(path) == header()
    assert list(read_records(path)) == records


@pytest.mark.parametrize("torn", [b"", b'{"row":1,"form"', b'{"row":1'])
def test_an_interrupted_run_goes_on_from_its_last_whole_line(tmp_path: Path, torn: bytes) -> None:
    path = tmp_path / "scores.jsonl"
    write(path, record(0))
    with path.open("ab") as file:
        file.write(torn)

    with pytest.raises(DataError):
        list(read_records(path))
    with ScoresWriter(path, header()) as writer:
        assert writer.num_done == 1
        writer.add(record(1))
        writer.add(record(2))

    assert [each.row for each in read_records(path)] == [0, 1, 2]


def test_a_run_that_ended_in_its_header_begins_anew(tmp_path: Path) -> None:
    path = tmp_path / "scores.jsonl"
    path.write_bytes(header().model_dump_json().encode()[:30])

    write(path, record(0), num_rows=1)

    assert len(list(read_records(path))) == 1


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"data_digest": "e"}, "scores of other data"),
        ({"model_digest": "n"}, "scores of another model"),
        ({"settings": {"backend": "vllm"}}, "was scored with settings"),
        ({"log_weights": (0.0,)}, "was scored with log_weights"),
    ],
)
def test_scores_of_something_else_are_not_gone_on_with(
    tmp_path: Path, changes: dict[str, object], told: str
) -> None:
    path = tmp_path / "scores.jsonl"
    write(path, record(0))
    before = path.read_bytes()

    with pytest.raises(ConfigError, match=told):
        ScoresWriter(path, header(**changes))
    assert path.read_bytes() == before

    with ScoresWriter(path, header(**changes), overwrite=True) as writer:
        assert writer.num_done == 0


@pytest.mark.parametrize("content", ["not scores at all", "a list of notes\nof mine\n", '{"row": 0}\n'])
def test_a_file_of_another_kind_is_never_replaced(tmp_path: Path, content: str) -> None:
    path = tmp_path / "notes.txt"
    path.write_text(content)

    with pytest.raises(ConfigError, match="no file of scores"):
        ScoresWriter(path, header())
    assert path.read_text() == content


def test_missing_rows_and_rows_out_of_order_are_told(tmp_path: Path) -> None:
    path = tmp_path / "scores.jsonl"
    write(path, record(0))

    with pytest.raises(DataError, match="has 1 of 3 rows: run the command"):
        list(read_records(path))
    with path.open("a") as file:
        file.write(path.read_text().splitlines()[1] + "\n")
    with pytest.raises(DataError, match=r"scores\.jsonl:3: found row 0"):
        list(read_records(path))


def test_numbers_that_are_none_are_refused() -> None:
    with pytest.raises(ValueError, match="not a number"):
        record(log_probs=(math.nan, 0.0))
    with pytest.raises(ValueError, match="each of 2 choices"):
        record(num_tokens=(1,))
