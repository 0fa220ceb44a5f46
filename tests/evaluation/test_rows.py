"""Which rows `softspec evaluate` reads, what their labels become, and what it says of those it cannot read."""

import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from softspec.errors import DataError
from softspec.evaluation.rows import Notes, Question, read_questions

USER = {"role": "user", "content": "Größe?"}
ASSISTANT = {"role": "assistant", "content": "klein"}
YES_NO = {"prompt": "Is it?", "choices": ["yes", "no"]}


def written(folder: Path, rows: Sequence[Any]) -> Path:
    path = folder / "data.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def question(folder: Path, **keys: Any) -> Question:
    (found,) = read_questions(written(folder, [{**YES_NO, **keys}]))
    return found


@pytest.mark.parametrize("answer", [1, "no"])
def test_an_answer_is_an_index_or_the_text_of_a_choice(tmp_path: Path, answer: object) -> None:
    assert question(tmp_path, answer=answer).answer == 1


@pytest.mark.parametrize("votes", [[3, 1], {"yes": 3, "no": 1}, {"no": 1.0, "yes": 3}])
def test_votes_are_a_list_or_an_object(tmp_path: Path, votes: object) -> None:
    assert question(tmp_path, votes=votes).votes == (3, 1)


def test_votes_without_choices_are_the_soft_labels_of_training(tmp_path: Path) -> None:
    (found,) = read_questions(written(tmp_path, [{"prompt": "Is it?", "votes": {"yes": 3, "no": 0}}]))

    assert (found.form, found.choices, found.votes) == ("choices", ("yes", "no"), (3, 0))


def test_a_rating_is_an_index_a_text_or_several(tmp_path: Path) -> None:
    found = question(tmp_path, ratings={"a": 1, "b": "yes", "c": ["no", 0], "absent": None, "silent": []})

    assert found.ratings == {"a": (1,), "b": (0,), "c": (1, 0)}


def test_a_choice_that_is_there_twice_counts_as_one_with_the_labels_of_both(tmp_path: Path) -> None:
    rows = [
        {
            "prompt": "?",
            "choices": ["a", "b", "a", "c"],
            "answer": 3,
            "votes": [1, 2, 3, 4],
            "ratings": {"x": 2},
        }
    ]
    notes = Notes()

    (found,) = read_questions(written(tmp_path, rows), notes)

    assert (found.choices, found.answer, found.votes, found.ratings) == (
        ("a", "b", "c"),
        2,
        (4, 2, 4),
        {"x": (0,)},
    )
    assert notes.lines() == ["1 row names a choice twice: it counts as one choice, with the labels of both"]


def test_rows_with_one_prompt_are_one_item(tmp_path: Path) -> None:
    rows = [
        {"messages": [USER], "choices": ["a", "b"], "source": "x"},
        {"prompt": [USER], "choices": ["a", "b"], "source": 7},
        {"prompt": "other", "choices": ["a", "b"], "kind": "conflict", "group": "g", "weight": 2},
    ]

    first, second, third = read_questions(written(tmp_path, rows))

    assert first.prompt == second.prompt == [USER]
    assert first.item == second.item != third.item
    assert (second.source, third.kind, third.group, third.weight) == ("7", "conflict", "g", 2.0)


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": [USER], "answers": ["klein"]},
        {"messages": [USER], "answer": "klein"},
        {"messages": [USER], "references": ["klein", "klein"]},
        {"messages": [USER, ASSISTANT]},
        {"prompt": [USER], "completion": [ASSISTANT]},
    ],
)
def test_reference_answers_are_a_list_a_text_or_the_last_turn(tmp_path: Path, row: dict[str, Any]) -> None:
    (found,) = read_questions(written(tmp_path, [row]))

    assert (found.form, found.prompt, found.choices) == ("generation", [USER], ("klein",))
    assert (found.answer, found.votes, found.ratings) == (None, None, None)


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"answer": 2}, "data.jsonl:1: answer: found 2, expected an index from 0 to 1"),
        ({"answer": -1}, "found -1, expected an index"),
        ({"answer": "maybe"}, 'found "maybe", expected one of ["yes", "no"]'),
        ({"answer": True}, "answer"),
        ({"answer": 1.0}, "answer"),
        ({"choices": ["yes"]}, "choices"),
        ({"choices": []}, "choices"),
        ({"choices": ["a", "a"]}, "all 'choices' are the same"),
        ({"choices": ["a", ""]}, "choices.1: expected text that is not empty"),
        ({"choices": ["a", 3]}, "choices.1: expected text (found 3)"),
        ({"choices": "ab"}, "choices: expected a list"),
        ({"votes": [1]}, "found 1 'votes' for 2 choices"),
        ({"votes": [0, 0]}, "more than 0 votes"),
        ({"votes": {"maybe": 1}}, 'votes: found "maybe"'),
        ({"votes": [1, -1]}, "votes: expected numbers from 0"),
        ({"votes": [1, "2"]}, "votes: expected numbers"),
        ({"ratings": {"a": 5}}, "ratings.a: found 5"),
        ({"ratings": {"a": "yes,no"}}, "ratings.a: found"),
        ({"ratings": {"a": {"yes": 1}}}, "'a' has"),
        ({"ratings": [1, 2]}, "ratings: expected an object"),
        ({"weight": 0}, "weight: expected a number greater than 0 (found 0)"),
        ({"weight": -1}, "weight"),
        ({"prompt": None}, "expected either 'prompt' or 'messages'"),
        ({"messages": [USER]}, "expected either 'prompt' or 'messages'"),
        ({"prompt": [USER, ASSISTANT]}, "messages that end before the assistant's answer"),
        ({"prompt": []}, "at least one message"),
        ({"prompt": '[{"role": "user", "content": "a"}]'}, "written as JSON text"),
        ({"chat_template_kwargs": {"a": 1}}, "not read here"),
        ({"choices": None}, "expected 'choices', or reference answers in 'answers'"),
        ({"choices": None, "answer": "a", "answers": ["b"]}, "found 'answers' beside 'answer'"),
        ({"choices": None, "answers": []}, "answers"),
        ({"choices": None, "answer": 3}, "answers"),
    ],
)
def test_a_row_that_cannot_be_evaluated_is_told_with_its_line(
    tmp_path: Path, keys: dict[str, Any], told: str
) -> None:
    with pytest.raises(DataError) as mistake:
        question(tmp_path, **keys)

    assert told in str(mistake.value)
    assert "data.jsonl:1: " in str(mistake.value)
    assert "\n" not in str(mistake.value)


def test_a_file_without_rows_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no rows found"):
        list(read_questions(written(tmp_path, [])))


def test_packed_files_are_read_one_row_at_a_time(tmp_path: Path) -> None:
    """So that a file of any length can be evaluated."""
    path = tmp_path / "data.jsonl.gz"
    with gzip.open(path, "wt") as file:
        file.write(json.dumps(YES_NO) + "\n" + "not JSON\n")
    rows = read_questions(path)

    assert next(rows).choices == ("yes", "no")
    with pytest.raises(DataError):
        next(rows)
