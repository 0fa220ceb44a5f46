"""What is said before the first step about data on which members cannot specialise, and nothing where they can."""

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from softspec.app.demo.facts import draw_statements, invent_things
from softspec.train.config import TrainConfig, load_config
from softspec.train.data.promise import Choices, doubts, gain_of_members, look_at_choices
from softspec.train.data.units import Example, Preference, Unit
from softspec.train.loop.schedule import ExampleOrder
from softspec.train.run import tell_doubts
from tests.support.tiny_training import config_of_no_files, prepared, write_config, write_rows

RECIPES = Path(__file__).parents[3] / "train" / "recipes"
HABITS = {"a": (0.7, 0.2, 0.1), "b": (0.1, 0.7, 0.2), "c": (0.2, 0.1, 0.7), "d": (0.33, 0.34, 0.33)}
"""Worth 0.22 nats a rating."""


def ratings(habits: Mapping[str, Sequence[float]], count: int = 300) -> list[Unit]:
    """One of a few answers to questions that nobody else was asked, by the habits of its source."""
    rng = random.Random(0)
    return [
        Example((place, number), (10 + rng.choices(range(len(law)), law)[0], 2), source, source)
        for number in range(count)
        for place, (source, law) in enumerate(habits.items())
    ]


def conventions(count: int = 300) -> list[Unit]:
    """Two sources that are asked the same and always say the opposite, one of them slightly more often no."""
    rng = random.Random(0)
    units: list[Unit] = []
    for number in range(count):
        truth = rng.random() < 0.3
        for source, answer in (("a", truth), ("b", not truth)):
            units.append(Example((1, number), (10 + answer, 2), source, source))
    return units


def group(**settings: Any) -> TrainConfig:
    return config_of_no_files(granularity="group", num_members=4, **settings)


@pytest.mark.parametrize("rows", [1, 2, 4])
@pytest.mark.parametrize("renyi_alpha", [0.2, 0.5, 0.8])
def test_opposite_bags_pay_exactly_where_the_bernoulli_oracle_switches(rows: int, renyi_alpha: float) -> None:
    """O3: all 1 or all 0, two members; specialists pay above alpha * rows = 1."""
    bags = Choices(torch.tensor([[500.0, 0], [0, 500]], dtype=torch.float64), None)

    if rows * renyi_alpha != 1:
        pays = gain_of_members(bags, 2, renyi_alpha, rows) > 0.1
        assert pays is (rows * renyi_alpha > 1)


@pytest.mark.parametrize("renyi_alpha", [0.3, 0.8, 1.0])
def test_one_choice_never_pays(renyi_alpha: float) -> None:
    """O5: below 1 nothing is gained, and at 1 nothing either."""
    choices = look_at_choices(ratings(HABITS))

    assert choices
    assert gain_of_members(choices, 4, renyi_alpha, 1) < 0.01


def test_groups_that_are_too_small_are_told_of_with_what_is_enough() -> None:
    """Four ratings worth 0.2 nats each are too few for four members, sixteen will do."""
    (line,) = doubts(group(group_rows=4), ratings(HABITS), 4, 4)

    assert line == (
        "rows have one of 3 answers, and of the 0.2 nats a row that sources' habits are worth 4 members at "
        "renyi_alpha 0.8 can have 0.061 with group_rows 4: set group_rows: 8"
    )
    assert doubts(group(group_rows=16), ratings(HABITS), 4, 4) == []


def test_habits_that_hardly_differ_are_told_of() -> None:
    (line,) = doubts(group(group_rows=8), ratings({"a": (0.62, 0.38), "b": (0.5, 0.5)}, 2000), 4, 2)

    assert "nats a row at most: unless sources differ in what they say of what" in line


def test_rows_of_one_choice_that_are_routed_alone_are_told_of() -> None:
    config = config_of_no_files(num_members=4)

    (line,) = doubts(config, ratings(HABITS), None, None)

    assert "one choice never pays for a member of its own" in line
    assert "set granularity: group and group_rows: " in line


def test_nothing_is_said_where_sources_hold_other_things_true() -> None:
    """Counts alone would say that habits are too weak; but they contradict each other on the same questions."""
    assert doubts(group(group_rows=4), conventions(), 4, 2) == []


def test_nothing_is_said_of_sources_whose_counts_tell_nothing() -> None:
    assert doubts(group(group_rows=4), ratings({"a": (0.5, 0.5), "b": (0.5, 0.5)}), 4, 2) == []


def test_nothing_is_said_of_answers_that_are_several_choices() -> None:
    """Four labels of one source and the commas between them: routed as one, though rows are routed one by one."""
    rng = random.Random(0)
    units: list[Unit] = []
    for number in range(400):
        labels = [10 + rng.randrange(2) for _ in range(4)]
        answer = [token for label in labels for token in (label, 3)][:-1]
        units.append(Example((1, number), (*answer, 2), "ab"[number % 2]))

    assert look_at_choices(units) is None
    assert doubts(config_of_no_files(num_members=4), units, None, None) == []


def test_nothing_is_said_of_long_answers() -> None:
    rng = random.Random(0)
    units: list[Unit] = [
        Example((1,), tuple(rng.randrange(9) for _ in range(6)), "ab"[number % 2]) for number in range(400)
    ]

    assert doubts(config_of_no_files(num_members=4), units, None, None) == []


@pytest.mark.parametrize("settings", [{"renyi_alpha": 0.0}, {"num_members": 1}], ids=str)
def test_nothing_is_said_where_nothing_is_routed(settings: dict[str, Any]) -> None:
    config = config_of_no_files(**{"num_members": 4, **settings})

    assert doubts(config, ratings(HABITS), None, None) == []


def test_nothing_is_said_of_rows_without_sources() -> None:
    units: list[Unit] = [Example((1, number), (10 + number % 2, 2)) for number in range(400)]

    assert doubts(config_of_no_files(num_members=4), units, None, None) == []


def test_many_annotators_with_two_tastes_may_pay_for_four_members() -> None:
    """Forty annotators in groups of four pairs: two tastes, 10 % noise, as in the pilot."""
    rng = random.Random(0)
    units: list[Unit] = []
    for number in range(1200):
        annotator = number % 40
        taste = (annotator + (rng.random() < 0.1)) % 2
        sides = [Example((1, number), (10 + each, 2)) for each in (taste, 1 - taste)]
        units.append(Preference(sides[0], sides[1], f"annotator {annotator}"))

    assert doubts(group(group_rows=4, objective="dpo"), units, 4, 40) == []


def test_steps_of_few_groups_are_told_of() -> None:
    (line,) = doubts(group(group_rows=16), ratings(HABITS), 1.0, 4)

    assert line.startswith("a step has about 1 groups for 4 members")
    assert line.endswith("or set it to 32")


def test_one_group_is_nothing_to_route() -> None:
    (line,) = doubts(group(), ratings({"a": (0.5, 0.5)}), 8, 1)

    assert line.startswith("all rows have one 'group'")


def test_nothing_is_said_of_the_demos_data() -> None:
    """Two sources that contradict each other in answers of four facts; words are tokens."""
    numbers: dict[str, int] = {}

    def ids(text: str) -> tuple[int, ...]:
        return tuple(numbers.setdefault(word, len(numbers)) for word in text.split())

    statements = draw_statements(invent_things(0), 960, 0)
    rows = [statement.row() for statement in statements]
    units: list[Unit] = []
    for row in rows:
        question, answer = (ids(turn["content"]) for turn in row["messages"])
        units.append(Example(question, answer, row["source"]))

    assert doubts(config_of_no_files(num_members=4), units, None, None) == []


@pytest.mark.parametrize("recipe", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.name)
def test_steps_of_every_recipe_have_groups_enough(recipe: Path) -> None:
    config = load_config(recipe)
    bundles = [range(100 * number, 100 * number + 100) for number in range(40)]
    order = ExampleOrder(config, 4000, bundles if config.granularity == "group" else None)
    groups = config.examples_per_step / order.examples_per_piece if config.granularity == "group" else None

    assert doubts(config, ratings({"a": (0.5, 0.5), "b": (0.5, 0.5)}, 5), groups, 40) == []


def test_a_run_tells_its_doubts_before_the_first_step(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        {"prompt": f"Question {number}?", "completion": "Yes" if number % 3 else "No", "group": "one"}
        for number in range(12)
    ]
    write_config(tmp_path)
    write_rows(tmp_path / "train.jsonl", rows)

    tell_doubts(prepared(tmp_path, granularity="group"))

    assert capsys.readouterr().err.splitlines()[-1] == (
        "softspec: all rows have one 'group': there is nothing to route, and members will stay alike"
    )
