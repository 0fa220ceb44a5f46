"""Do the defaults need tuning? The schedule beside the plain objective and beside remedies that are set by hand.

`pytest tests/pilots/test_schedules.py -m pilot -s` prints the table of train/README.md.
"""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from softspec.app.demo.facts import invent_things
from tests.pilots.base import write_base
from tests.pilots.facts import FactsOutcome, train_on_statements, write_statements
from tests.pilots.linear import Outcome, World, linear_config, train_linear

pytestmark = [pytest.mark.slow, pytest.mark.pilot, pytest.mark.timeout(3600)]

WORLDS: Mapping[str, World] = {
    "form known": World(form=2, familiar=True),
    "one source in five": World(form=2, familiar=True, sources=(0.8, 0.2)),
    "three sources": World(form=2, familiar=True, sources=(1 / 3, 1 / 3, 1 / 3)),
    "nothing contested": World(form=2, familiar=True, contested=0),
    "form new": World(),
    "form new, groups of 16": World(grouped=True),
    "long answers": World(filler=60),
}
RATES = (1e-3, 3e-3, 1e-2)
SEEDS = (0, 1, 2)
BY_HAND: Mapping[str, Mapping[str, Any]] = {
    "floor": {"schedule": "plain", "responsibility_floor": 0.05, "reseed_starved": True},
    "warm-up": {"schedule": "plain", "alpha_warmup_ratio": 0.2, "reseed_starved": True},
}
SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "alpha 0": {"renyi_alpha": 0.0},
    "plain": {"schedule": "plain"},
    **BY_HAND,
    "auto": {},
}
Outcomes = Mapping[str, list[Outcome]]


def outcomes_of(world: World, rate: float, num_members: int = 4) -> Outcomes:
    """What came of every setting, seed by seed."""
    runs = [(name, seed) for name in SETTINGS for seed in SEEDS]
    shared = {"learning_rate": rate, "num_members": num_members}
    found = train_linear(world, [linear_config(seed, **shared, **SETTINGS[name]) for name, seed in runs])
    return {
        name: [each for run, each in zip(runs, found, strict=True) if run[0] == name] for name in SETTINGS
    }


def spread(outcomes: Sequence[Outcome | FactsOutcome]) -> str:
    """The mean of the mixture NLLs, with the smallest and largest."""
    values = [outcome.mixture_nll for outcome in outcomes]
    return f"{statistics.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})"


def assert_auto_is_as_good(row: str, found: Mapping[str, Sequence[Outcome | FactsOutcome]]) -> None:
    """Print a row of the table; the defaults are within the spread of the best setting, and no member starves."""
    least = {setting: min(each.least_load for each in outcomes) for setting, outcomes in found.items()}
    cells = [f"{spread(outcomes)}, {least[setting]:.2f}" for setting, outcomes in found.items()]
    print(f"\n| {row} | {' | '.join(cells)} |")

    by_hand = [setting for setting in BY_HAND if setting in found]
    nll = {key: statistics.mean(each.mixture_nll for each in outcomes) for key, outcomes in found.items()}
    noise = max(statistics.stdev(each.mixture_nll for each in found[key]) for key in ("auto", *by_hand))
    assert nll["auto"] < min(nll[key] for key in ("plain", *by_hand)) + noise
    assert min(each.worst_gain for each in found["auto"]) > 0
    assert least["auto"] > 0.1


@pytest.mark.parametrize("rate", [3e-4, 1e-3, 3e-3])
def test_defaults_are_as_good_on_a_transformer(rate: float, tmp_path: Path) -> None:
    """The contradictory facts of the acceptance test, in half of its steps."""
    found: dict[str, list[FactsOutcome]] = {name: [] for name in ("alpha 0", "plain", "floor", "auto")}
    for seed in SEEDS:
        things, data = invent_things(seed, 24, 24, 24), tmp_path / str(seed)
        base = write_base(tmp_path / f"base-{seed}", things, seed)
        write_statements(data, things, seed)
        for name, outcomes in found.items():
            settings = {"renyi_alpha": 0.8, **SETTINGS[name], "learning_rate": rate, "max_steps": 600}
            outcomes.append(train_on_statements(base, data, things, seed, **settings, logging_steps=10))
    assert_auto_is_as_good(f"{rate:g}", found)


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("name", [*WORLDS, "form known, 8 members"])
def test_defaults_are_as_good_as_the_best_setting_by_hand(name: str, rate: float) -> None:
    world, _, members = name.partition(", 8 ")
    found = outcomes_of(WORLDS[world] if members else WORLDS[name], rate, 8 if members else 4)
    assert_auto_is_as_good(f"{name} | {rate:g}", found)
