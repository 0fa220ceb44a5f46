"""Intervals: how often they hold the truth, what is resampled, and where there are none."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import bootstrap

from softspec.evaluation.bootstrap import Resampling, Statistic, described, resampling_of, sample
from tests.support.judged_records import columns, record

HALF = [[0.5, 0.5], [0.5, 0.5]]


def mean(values: torch.Tensor) -> Statistic:
    return Statistic("mean", lambda weights: weights @ values / weights.sum(-1), len(values))


def interval(values: torch.Tensor, unit_of: torch.Tensor, seed: int, draws: int = 200) -> dict:
    resampling = Resampling("group", unit_of, torch.ones(len(values), dtype=torch.float64), draws, seed)
    return described(sample({"mean": mean(values)}, resampling)["mean"], resampling)


def test_the_interval_of_a_mean_is_that_of_scipy() -> None:
    values = np.random.default_rng(0).exponential(size=80)

    own = interval(torch.from_numpy(values), torch.arange(80), seed=0, draws=4000)

    theirs = bootstrap((values,), np.mean, method="percentile", n_resamples=4000, rng=1).confidence_interval
    assert (own["low"], own["high"]) == pytest.approx(tuple(theirs), abs=0.04)
    assert own["value"] == pytest.approx(values.mean())


@pytest.mark.parametrize(("is_grouped", "low", "high"), [(True, 0.88, 0.99), (False, 0.0, 0.75)])
def test_only_an_interval_by_groups_holds_the_truth_where_rows_go_together(
    is_grouped: bool, low: float, high: float
) -> None:
    """Rows of one group share most of their value, so the same number of rows says less."""
    generator, held = np.random.default_rng(1), 0
    for trial in range(100):
        shared = generator.normal(size=30).repeat(8)
        values = torch.from_numpy(shared + 0.3 * generator.normal(size=240))
        units = torch.arange(30).repeat_interleave(8) if is_grouped else torch.arange(240)
        found = interval(values, units, seed=trial)
        held += found["low"] <= 0 <= found["high"]

    assert low <= held / 100 <= high


def test_groups_then_items_then_rows_are_resampled() -> None:
    """Four annotators as groups are too few to say how another four would be."""
    alone = [record(n, HALF) for n in range(40)]
    items = [record(n, HALF, item=f"i{n // 2}", group=f"annotator {n % 4}") for n in range(40)]
    groups = [record(n, HALF, item=f"i{n // 2}", group=f"g{n // 4}" if n < 36 else None) for n in range(44)]
    groups += [record(44, HALF, group="g9"), record(45, HALF, group="g9")]

    found = [resampling_of(columns(rows), 10, 0) for rows in (alone, items, groups)]

    assert [(each.unit, each.count) for each in found] == [("row", 40), ("item", 20), ("group", 18)]


@pytest.mark.parametrize(
    ("values", "reason"),
    [([0.5], "one group only"), ([0.5, 0.5, 0.5], "the same on all resampled data")],
)
def test_where_nothing_varies_there_is_no_interval(values: list[float], reason: str) -> None:
    found = interval(torch.tensor(values, dtype=torch.float64), torch.arange(len(values)), seed=0)

    assert (found["value"], found["low"], found["high"]) == (0.5, None, None)
    assert reason in str(found["reason"])


def test_no_value_is_null_with_its_reason() -> None:
    resampling = Resampling("row", torch.arange(3), torch.ones(3, dtype=torch.float64), 10)
    nothing = Statistic("none", lambda weights: weights.sum(-1) * math.nan, 3, "nobody knows")

    found = described(sample({"none": nothing}, resampling)["none"], resampling)

    assert found == {
        "value": None,
        "low": None,
        "high": None,
        "n": 3,
        "estimator": "none",
        "reason": "nobody knows",
    }


def test_a_paired_difference_is_narrower_than_either() -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(100, generator=generator, dtype=torch.float64)
    better = values - 0.1 + 0.05 * torch.randn(100, generator=generator, dtype=torch.float64)
    resampling = Resampling("row", torch.arange(100), torch.ones(100, dtype=torch.float64), 500)

    own, other = (sample({"m": mean(each)}, resampling)["m"] for each in (better, values))
    difference = described(own.minus(other), resampling)

    assert -0.13 < difference["low"] < difference["value"] < difference["high"] < -0.07
