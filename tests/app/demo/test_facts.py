"""The demo's data has the structure its tables claim."""

import json
import math
from collections import Counter
from pathlib import Path

import pytest

from softspec.app.demo.facts import (
    COLOURS,
    SOURCES,
    Statement,
    Thing,
    ask,
    draw_statements,
    invent_things,
    lowest_nll,
    write_rows,
)

THINGS = invent_things(seed=0)
EXAMPLES = draw_statements(THINGS, 400, seed=1)


def test_kinds_come_in_the_sizes_asked_for_with_distinct_names() -> None:
    kinds = Counter(thing.kind for thing in THINGS)

    assert kinds == {"agreed": 10, "conflict": 10, "unseen": 8}
    assert len({thing.name for thing in THINGS}) == 28


def test_sources_agree_on_agreed_things_only() -> None:
    colours = {
        kind: [t.colours for t in THINGS if t.kind == kind] for kind in ("agreed", "conflict", "unseen")
    }

    assert all(a == b for a, b in colours["agreed"])
    assert all(a != b for a, b in colours["conflict"])
    assert colours["unseen"] == [()] * 8


def test_unseen_things_are_never_asked_in_training() -> None:
    asked = {thing.kind for example in EXAMPLES for thing in example.things}

    assert asked == {"agreed", "conflict"}


def test_every_example_tells_four_different_facts_of_one_source() -> None:
    for example in draw_statements(THINGS, 100, seed=2, noise=0.0):
        assert len({thing.name for thing in example.things}) == 4
        assert example.answers == tuple(thing.colours[example.source] for thing in example.things)


def test_three_percent_of_the_answers_are_wrong() -> None:
    pairs = [
        (thing.colours[example.source], answer)
        for example in draw_statements(THINGS, 3000, seed=3)
        for thing, answer in zip(example.things, example.answers, strict=True)
    ]
    wrong = sum(truth != answer for truth, answer in pairs) / len(pairs)

    assert wrong == pytest.approx(0.03, abs=0.005)


def test_same_seed_gives_the_same_data_and_another_seed_does_not() -> None:
    assert draw_statements(invent_things(seed=0), 400, seed=1) == EXAMPLES
    assert invent_things(seed=1) != THINGS
    assert draw_statements(THINGS, 400, seed=2) != EXAMPLES


def test_held_out_questions_do_not_occur_in_training() -> None:
    """With three things there are only six ordered pairs, so repeats would be certain."""
    few = [thing for thing in THINGS if thing.kind == "agreed"][:3]
    training = [Statement((few[0], few[1]), ("red", "red"), 0)]

    held_out = draw_statements(few, 100, seed=4, facts=2, exclude=training)

    assert len(held_out) == 100
    assert (few[0], few[1]) not in {example.things for example in held_out}


def test_rows_are_messages_with_their_source(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"

    write_rows(path, (example.row() for example in EXAMPLES))

    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert len(rows) == 400
    assert rows[0]["messages"] == [
        {"role": "user", "content": ask(EXAMPLES[0].things)},
        {"role": "assistant", "content": ", ".join(EXAMPLES[0].answers)},
    ]
    assert {row["source"] for row in rows} == set(SOURCES)


def test_lowest_nll_of_two_conflicting_facts_without_noise_is_log_two() -> None:
    """One coin decides the source; the second answer follows from the first."""
    conflict = Thing("Vorik", "conflict", ("red", "blue"))
    other = Thing("Talen", "conflict", ("white", "grey"))
    example = Statement((conflict, other), ("red", "white"), 0)

    assert lowest_nll([example], noise=0.0) == pytest.approx(math.log(2))


def test_lowest_nll_of_an_agreed_fact_is_its_label_noise() -> None:
    thing = Thing("Vorik", "agreed", ("red", "red"))
    right, wrong = Statement((thing,), ("red",), 0), Statement((thing,), ("blue",), 0)

    assert lowest_nll([right]) == pytest.approx(-math.log(0.97))
    assert lowest_nll([wrong]) == pytest.approx(-math.log(0.03 / (len(COLOURS) - 1)))
