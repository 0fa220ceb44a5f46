"""Does the method do what it is for? Real members on a tiny transformer, data whose truth is known.

Claims about contradictions are tested twice: on one seed and few steps, and (`pytest tests/pilots -m pilot -s`) on
three seeds, with a table of all alphas, also those at which nothing happens. That without any members stay alike is
tested there alone.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from softspec.app.demo.facts import invent_things
from tests.pilots.base import write_base
from tests.pilots.facts import FactsOutcome, train_on_statements, write_statements
from tests.pilots.table import print_table
from tests.pilots.tastes import TasteOutcome, train_on_judgements, write_judgements

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Size:
    """Seeds and orders of an experiment; `steps` of the facts, `single` adds one adapter alone."""

    seeds: tuple[int, ...]
    alphas: tuple[float, ...]
    steps: int
    single: bool


QUICK = Size(seeds=(0,), alphas=(0.0, 0.8), steps=200, single=False)
FULL = Size(seeds=(0, 1, 2), alphas=(0.0, 0.3, 0.5, 0.8, 1.0), steps=1200, single=True)
SIZES = [
    pytest.param(QUICK, id="quick"),
    pytest.param(FULL, id="full", marks=[pytest.mark.pilot, pytest.mark.timeout(7200)]),
]
Facts = dict[str, list[FactsOutcome]]
"""An outcome for each seed, by what was trained: "0.8" is an ensemble of that order, "single" one adapter."""
Tastes = dict[str, list[TasteOutcome]]
"""An outcome for each seed, by granularity and order: "group, 0.8"."""


@pytest.fixture(scope="module")
def base_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """The base of a seed. Things have the same names in all its experiments."""
    folder = tmp_path_factory.mktemp("bases")
    return cache(lambda seed: write_base(folder / str(seed), invent_things(seed, 24, 24, 24), seed))


@pytest.fixture(scope="module", params=SIZES)
def contradictions(request: pytest.FixtureRequest, base_of: Any, tmp_path_factory: Any) -> Facts:
    """24 things on which two sources agree, and 24 on which they do not."""
    results = learn_facts(request.param, base_of, tmp_path_factory, agreed=24, conflict=24)
    print_table("Two sources that contradict each other", results)
    return results


@pytest.fixture(scope="module", params=SIZES[1:])
def agreement(request: pytest.FixtureRequest, base_of: Any, tmp_path_factory: Any) -> Facts:
    """48 things on which two sources agree: nothing to specialise on."""
    size = replace(request.param, alphas=(0.0, 0.8))
    results = learn_facts(size, base_of, tmp_path_factory, agreed=48, conflict=0)
    print_table("Two sources that agree", results)
    return results


@pytest.fixture(scope="module", params=SIZES)
def tastes(request: pytest.FixtureRequest, base_of: Any, tmp_path_factory: Any) -> Tastes:
    """Annotators of two opposite tastes, routed pair by pair ("sequence") and annotator by annotator ("group")."""
    size = request.param
    results: Tastes = {}
    for seed in size.seeds:
        folder = tmp_path_factory.mktemp("tastes") / "data"
        write_judgements(folder, invent_things(seed, 24, 24, 24), seed)
        for granularity in ("sequence", "group"):
            for alpha in size.alphas:
                outcome = train_on_judgements(
                    base_of(seed), folder, seed, granularity=granularity, renyi_alpha=alpha
                )
                results.setdefault(f"{granularity}, {alpha}", []).append(outcome)
    print_table("Annotators of opposite tastes", results)
    return results


def test_specialists_explain_contradictory_sources_better_than_independent_members(
    contradictions: Facts,
) -> None:
    for specialists, independent in in_pairs(contradictions, "0.8", "0.0"):
        assert specialists.mixture_nll < independent.mixture_nll - 0.3


def test_the_gain_is_that_of_weights_which_the_prefix_updates(contradictions: Facts) -> None:
    """A mixture that forgets at every token which member has been right gains little from specialists."""
    for specialists, independent in in_pairs(contradictions, "0.8", "0.0"):
        gain = independent.mixture_nll - specialists.mixture_nll
        assert independent.fixed_nll - specialists.fixed_nll < gain / 2


def test_specialists_disagree_where_the_sources_do(contradictions: Facts) -> None:
    for specialists, independent in in_pairs(contradictions, "0.8", "0.0"):
        assert specialists.mi_conflict > 5 * specialists.mi_agreed
        assert specialists.mi_conflict > 0.3
        assert independent.mi_conflict < 0.1


def test_each_specialist_follows_one_source(contradictions: Facts) -> None:
    for specialists, independent in in_pairs(contradictions, "0.8", "0.0"):
        assert specialists.soft_source_mi > 0.3
        assert specialists.purity > 0.9
        assert independent.soft_source_mi < 0.02


def test_without_contradictions_members_stay_alike(agreement: Facts) -> None:
    for coupled, independent in in_pairs(agreement, "0.8", "0.0"):
        assert coupled.mixture_nll > independent.mixture_nll - 0.05
        assert coupled.mi_agreed < independent.mi_agreed + 0.02
        assert coupled.soft_source_mi < 0.02


def test_members_take_the_tastes_of_annotators_whose_pairs_are_routed_together(tastes: Tastes) -> None:
    for together, one_by_one in in_pairs(tastes, "group, 0.8", "sequence, 0.8"):
        assert together.rate_variance > 0.15
        assert together.soft_taste_mi > 0.3
        assert one_by_one.rate_variance < 0.05
        assert one_by_one.soft_taste_mi < 0.02


def test_grouping_does_nothing_to_independent_members(tastes: Tastes) -> None:
    for (independent,) in in_pairs(tastes, "group, 0.0"):
        assert independent.rate_variance < 0.05
        assert independent.soft_taste_mi < 0.02


def learn_facts(size: Size, base_of: Any, tmp_path_factory: Any, agreed: int, conflict: int) -> Facts:
    results: Facts = {}
    runs = {str(alpha): {"renyi_alpha": alpha} for alpha in size.alphas}
    if size.single:
        runs["single"] = {"num_members": 1}
    for seed in size.seeds:
        things, folder = invent_things(seed, agreed, conflict, 24), tmp_path_factory.mktemp("facts") / "data"
        write_statements(folder, things, seed)
        for name, settings in runs.items():
            outcome = train_on_statements(
                base_of(seed), folder, things, seed, max_steps=size.steps, **settings
            )
            results.setdefault(name, []).append(outcome)
    return results


def in_pairs(results: Mapping[str, Sequence[Any]], *names: str) -> Iterator[tuple[Any, ...]]:
    """The outcomes of these runs, seed by seed."""
    return zip(*(results[name] for name in names), strict=True)
