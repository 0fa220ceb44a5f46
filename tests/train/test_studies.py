"""The scripts of `train/recipes/studies`, on invented rows in the form of the public data."""

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from softspec.evaluation.rows import Notes, read_questions
from softspec.train.data.preferences import PreferenceRow
from softspec.train.data.rows import Row, VotesRow, parse_row

STUDIES = Path(__file__).parents[2] / "train" / "recipes" / "studies"
PAIR = {"prompt": "Say {n}.", "a": "This is {n}.", "b": "No.", "votes": [1, 2, 0]}


@pytest.fixture
def study(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Import a module of the studies by its name."""
    monkeypatch.syspath_prepend(str(STUDIES))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    before = set(sys.modules)
    yield importlib.import_module
    for name in set(sys.modules) - before:
        if str(STUDIES) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def rows(template: dict[str, Any], count: int = 40) -> list[dict[str, Any]]:
    """Rows in which {n} is their number."""
    return [json.loads(json.dumps(template).replace("{n}", str(number))) for number in range(count)]


def questions(found: Iterator[dict[str, Any]], folder: Path) -> list[Any]:
    """Held-out rows as `softspec evaluate` reads them."""
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in found), encoding="utf-8")
    return list(read_questions(path, Notes()))


def test_sources_of_sentiment_contradict_each_other_on_one_domain(study: Any, tmp_path: Path) -> None:
    module = study("sentiment")
    reviews = [{"text": f"Review {number}.", "label": number % 2} for number in range(module.HELD_OUT + 8)]
    domains = dict.fromkeys(module.DOMAINS, reviews)

    train, held_out = list(module.training(domains)), questions(module.held_out(domains), tmp_path)

    answers: dict[str, list[set[str]]] = {"Amazon": [], "Yelp": []}
    for start in range(16):
        told = train[start]["messages"][0]["content"]
        same = {row["messages"][1]["content"] for row in train if row["messages"][0]["content"] == told}
        answers["Amazon" if "Amazon" in told else "Yelp"].append(same)
    assert {len(each) for each in answers["Amazon"]} == {1}
    assert {len(each) for each in answers["Yelp"]} == {2}
    assert {parse_row(row, Row, "row").group for row in train} == {"A", "B"}
    assert {(row.kind, len(row.ratings or ())) for row in held_out} == {
        ("agreed", 2),
        ("conflict", 2),
        ("ood", 0),
    }


def test_annotators_of_entailment_are_groups_and_their_labels_votes(study: Any, tmp_path: Path) -> None:
    module = study("nli_annotators")
    data = rows({
        "text": {"context": "It is {n}.", "statement": "It is a number."},
        "annotations": {"Ann1": "entailment", "Ann2": "neutral,contradiction", "Ann3": ""},
    })  # fmt: skip

    train, held_out = list(module.training(data)), questions(module.held_out(data), tmp_path)

    votes = {(row["group"], *sorted(row["votes"])) for row in train}
    assert votes == {("Ann1", "yes"), ("Ann2", "maybe", "no")}
    assert all(parse_row(row, VotesRow, "row") for row in train)
    assert held_out[0].ratings == {"Ann1": (0,), "Ann2": (1, 2)}


def test_items_of_a_picture_stay_on_one_side(study: Any, tmp_path: Path) -> None:
    module = study("nli_people")
    data = rows({
        "id": "{n}.jpg#0", "premise": "It is {n}.", "hypothesis": "It is.",
        "old_labels": ["e", "n", "e"], "votes": {"e": 55, "n": 40, "c": 5},
    }, 400)  # fmt: skip

    sides = {
        module.is_held_out(row | {"id": row["id"][:-1] + "1"}) == module.is_held_out(row) for row in data
    }
    train, held_out = list(module.training(data[:3])), questions(module.held_out(data[:3]), tmp_path)

    assert sides == {True}
    assert 60 < sum(map(module.is_held_out, data)) < 160
    assert parse_row(train[0], VotesRow, "row").votes == {"yes": 2, "maybe": 1}
    assert (held_out[0].votes, held_out[0].kind) == ((55, 40, 5), "conflict")


def test_multiple_choice_asks_for_the_letter_of_one_of_four_options(study: Any, tmp_path: Path) -> None:
    module = study("multiple_choice")
    data = rows({"question": "Which is {n}?", "choices": ["one", "{n}", "two", "ten"], "answer": 1}, 3)
    data[1]["choices"] = data[1]["choices"][:3]

    train = list(module.training(module.usable(data, 2)))
    held_out = questions(module.held_out("arc_easy", data), tmp_path)

    asked, answer = train[1]["messages"]
    assert asked["content"].splitlines()[:3] == ["Which is 2?", "A. one", "B. 2"]
    assert answer["content"] == "B"
    assert [(row.choices, row.answer, row.kind) for row in held_out] == [(tuple("ABCD"), 1, "ood")] * 2


def test_gains_are_split_by_what_the_base_gets_right(
    study: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two questions: the base is right about the first; one of two members about each."""
    module = study("multiple_choice")

    def record(*picked: int) -> dict[str, Any]:
        members = [[0.0 if choice == each else -9.0 for choice in range(2)] for each in picked]
        return {"member_log_probs": members, "num_tokens": [1, 2], "answer": 0}

    folder = tmp_path / "runs" / "seed-0" / "scores-questions"
    folder.mkdir(parents=True)
    told = {"base": [record(0), record(1)], "single": [record(1), record(0)]}
    told |= {"independent": [record(0, 0), record(0, 1)], "ensemble": [record(0, 1), record(1, 1)]}
    for name, records in told.items():
        (folder / f"{name}.jsonl").write_text("".join(f"{json.dumps(each)}\n" for each in [{}, *records]))

    module.gains(module.Namespace(work=tmp_path, seeds=[0]))

    table = [line.split("|")[1:4] for line in capsys.readouterr().out.splitlines()[2:]]
    found = {name.strip(): (wrong.split()[0], right.split()[0]) for name, wrong, right in table}
    assert found == {
        "single": ("1.000", "0.000"),
        "independent": ("0.500", "1.000"),
        "ensemble": ("0.000", "0.500"),
    }


def test_pairs_are_one_for_each_annotator_with_a_preference(study: Any, tmp_path: Path) -> None:
    module = study("preferences")
    data = rows(PAIR)

    train, held_out = list(module.training(data[:1])), questions(module.held_out(data[:1]), tmp_path)

    pairs = [parse_row(row, PreferenceRow, "row") for row in train]
    assert [(pair.group, row["chosen"][0]["content"]) for pair, row in zip(pairs, train, strict=True)] == [
        ("annotator 0", "This is 0."),
        ("annotator 1", "No."),
    ]
    assert (held_out[0].ratings, held_out[0].kind) == ({"annotator 0": (0,), "annotator 1": (1,)}, "conflict")


@pytest.mark.slow
def test_a_study_trains_judges_and_prints_its_tables(
    study: Any,
    tiny_base: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    module: ModuleType = study("preferences")
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=":")
    pairs = [row | {"votes": [1, 1, 1]} if number % 2 else row for number, row in enumerate(rows(PAIR))]
    (tmp_path / "pref.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    flags = ["--base", str(tiny_base), "--seeds", "0", "1", "--alphas", "1", "--steps", "2"]
    monkeypatch.setattr(
        sys,
        "argv",
        [
            "preferences.py",
            str(tmp_path),
            str(tmp_path / "work"),
            *flags,
            "--only",
            "single",
            "base",
            "independent",
        ],
    )

    module.main()

    lines = [line.split(" | ")[0] for line in capfd.readouterr().out.splitlines()]
    assert [line[2:] for line in lines[2:7]] == [
        "base, zero-shot", "one adapter", "alpha 0 (independent)", "**alpha 0.8**", "alpha 1"
    ]  # fmt: skip
    assert sum(line.startswith("| ensemble") for line in lines) == 2
