"""The guarantees hold at their level over a thousand draws, and thresholds that are only fitted break them.

Truth: the doubt x of a request is exponential, P(wrong | x) = min(0.3 x, 0.9) or another known curve, so the error rate
among the requests below a threshold is an integral.
"""

import math
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import bdtr

from softspec.calibration.model import fit_confidence
from softspec.calibration.outcomes import Outcomes
from softspec.calibration.thresholds import (
    Certified,
    certify_coverage,
    certify_error,
    design_rows,
    why_no_coverage,
    why_no_error,
)
from softspec.maths.answer import METRICS

Curve = Callable[[NDArray[np.float64]], NDArray[np.float64]]
DELTA = 0.1
DRAWS = 1000
GRID = np.linspace(0, 12, 24_001)


def rising(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.minimum(0.3 * x, 0.9)


def flat(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """As many errors everywhere, and a little more than the target: nothing may be certified."""
    return np.full_like(x, 0.105)


def valley(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """The surest answers are bad too: the error rate falls before it rises."""
    return np.where(x < 0.1, 0.5, np.minimum(0.25 * x, 0.9))


def risk(curve: Curve) -> Callable[[float], float]:
    """The true error rate among answered requests, as a function of the threshold."""
    weight = np.exp(-GRID)
    wrong, all_of_them = np.cumsum(curve(GRID) * weight), np.cumsum(weight)
    return lambda threshold: float(np.interp(threshold, GRID, wrong / all_of_them))


def draw(
    curve: Curve, rows: int, generator: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    x = generator.exponential(size=rows)
    return x, generator.random(rows) < curve(x)


def violations(curve: Curve, choose: Callable[..., float | None], target: float, rows: int = 400) -> float:
    """In how many draws of the rows the chosen threshold has more errors than the target."""
    truth, generator = risk(curve), np.random.default_rng(1)
    chosen = [choose(*draw(curve, rows, generator), target) for _ in range(DRAWS)]
    return sum(threshold is not None and truth(threshold) > target for threshold in chosen) / DRAWS


def certified(x: NDArray[np.float64], wrong: NDArray[np.bool_], target: float) -> float | None:
    found = certify_error(x, wrong, design_rows(len(x)), target, DELTA)
    return None if found is None else found.threshold


def empirical(x: NDArray[np.float64], wrong: NDArray[np.bool_], target: float) -> float | None:
    """What one would do without a guarantee: the largest threshold whose own rows have few enough errors."""
    order = np.argsort(x)
    good = np.flatnonzero(np.cumsum(wrong[order]) <= target * np.arange(1, len(x) + 1))
    return float(x[order][good[-1]]) if len(good) else None


def reused(x: NDArray[np.float64], wrong: NDArray[np.bool_], target: float) -> float | None:
    """Every threshold tested by itself on all rows, and the largest that passed taken: no account of the choice."""
    order = np.argsort(x)
    count = np.arange(1, len(x) + 1)
    good = np.flatnonzero(bdtr(np.cumsum(wrong[order]), count, target) <= DELTA)
    return float(x[order][good[-1]]) if len(good) else None


def most_by_chance(level: float) -> float:
    """What a share that is at most `level` stays below in all but one of ten thousand runs of the test."""
    return level + 3.7 * math.sqrt(level * (1 - level) / DRAWS)


@pytest.mark.parametrize("curve", [rising, flat, valley])
def test_error_among_answered_is_kept_as_often_as_stated(curve: Curve) -> None:
    assert violations(curve, certified, 0.1) <= most_by_chance(DELTA)


def test_guarantee_is_not_bought_by_answering_nothing() -> None:
    generator, truth = np.random.default_rng(2), risk(rising)
    found = [certified(*draw(rising, 1000, generator), 0.1) for _ in range(50)]

    shares = [0.0 if threshold is None else 1 - math.exp(-threshold) for threshold in found]
    best = 1 - math.exp(-GRID[np.argmin([abs(truth(t) - 0.1) for t in GRID[1:8000]]) + 1])
    assert np.mean(shares) > 0.6 * best


@pytest.mark.parametrize("wrong", [empirical, reused])
def test_threshold_without_a_guarantee_fails_the_same_test(wrong: Callable[..., float | None]) -> None:
    curve = rising if wrong is empirical else flat
    assert violations(curve, wrong, 0.1) > most_by_chance(DELTA)


def test_coverage_is_reached_as_often_as_stated_and_a_plain_quantile_fails() -> None:
    generator, rows, target = np.random.default_rng(3), 100, 0.8
    missed_plain = missed = 0
    for _ in range(DRAWS):
        x, wrong = draw(rising, rows, generator)
        found = certify_coverage(x, wrong, target, DELTA)
        assert isinstance(found, Certified)
        missed += 1 - math.exp(-found.threshold) < target
        missed_plain += 1 - math.exp(-float(np.quantile(x, target))) < target

    assert missed / DRAWS <= most_by_chance(DELTA)
    assert missed_plain / DRAWS > most_by_chance(DELTA)


def test_ties_of_a_metric_with_few_values_keep_the_guarantee() -> None:
    """Disagreement of four members has five values."""
    generator, rates = np.random.default_rng(4), np.array([0.06, 0.11, 0.3, 0.5, 0.6])
    bad = 0
    for _ in range(DRAWS):
        level = generator.choice(5, size=300, p=[0.4, 0.3, 0.1, 0.1, 0.1])
        wrong = generator.random(300) < rates[level]
        found = certified(level / 4, wrong, 0.08)
        bad += found is not None and found >= 0.25  # (0.4 * 0.06 + 0.3 * 0.11) / 0.7 = 0.0814
    assert bad / DRAWS <= most_by_chance(DELTA)


def test_threshold_counts_what_it_answers_with_ties() -> None:
    doubts = np.repeat([0.0, 1.0], 200)
    wrong = np.arange(400) >= 200

    found = certify_error(doubts, wrong, design_rows(400), 0.1, DELTA)

    assert isinstance(found, Certified)
    assert (found.threshold, found.num_wrong, found.num_rows) == (0.0, 0, 320)
    assert found.num_answered == int((doubts[~design_rows(400)] == 0).sum())


def test_too_few_rows_say_how_many_would_do() -> None:
    x, wrong = draw(rising, 60, np.random.default_rng(5))

    part = x, wrong, design_rows(60), 0.01, DELTA

    assert certify_error(*part) is None
    refused = why_no_error(*part)
    assert refused.rows_needed is not None
    assert refused.rows_needed >= math.log(DELTA) / math.log(0.99)


def test_more_rows_do_not_help_where_even_the_surest_answers_are_wrong() -> None:
    generator = np.random.default_rng(6)
    x, wrong = generator.random(2000), generator.random(2000) < 0.5

    part = x, wrong, design_rows(2000), 0.1, DELTA

    assert certify_error(*part) is None
    refused = why_no_error(*part)
    assert refused.rows_needed is None
    assert "of the surest answers" in refused.reason


def test_number_of_rows_that_is_told_mostly_suffices() -> None:
    generator = np.random.default_rng(7)
    x, wrong = draw(rising, 150, generator)
    part = x, wrong, design_rows(150), 0.05, DELTA
    assert certify_error(*part) is None
    refused = why_no_error(*part)
    assert refused.rows_needed is not None

    passed = [
        certified(*draw(rising, 3 * refused.rows_needed, generator), 0.05) is not None for _ in range(40)
    ]

    assert np.mean(passed) > 0.6


def test_answers_that_are_never_judged_are_always_answered() -> None:
    doubts = np.concatenate([np.full(200, -np.inf), np.linspace(0, 1, 200)])
    wrong = np.concatenate([np.zeros(200, bool), np.linspace(0, 1, 200) > 0.5])

    found = certify_error(doubts, wrong, design_rows(400), 0.1, DELTA)

    assert isinstance(found, Certified)
    assert math.isfinite(found.threshold)
    assert found.num_answered > 160


def test_coverage_of_too_few_rows_says_how_many_would_do() -> None:
    assert certify_coverage(np.linspace(0, 1, 9), np.zeros(9, bool), 0.8, 0.1) is None
    assert why_no_coverage(9, 0.8, 0.1).rows_needed == 11
    assert certify_coverage(np.linspace(0, 1, 11), np.zeros(11, bool), 0.8, 0.1) is not None


@pytest.mark.pilot
def test_guarantee_survives_the_fit_of_several_metrics_and_not_one_on_the_rows_that_test() -> None:
    """Six metrics of which one says something: fitted to the rows that test them, they look better than they are."""
    generator = np.random.default_rng(8)
    names = METRICS[:6]

    def rows(count: int) -> Outcomes:
        values = generator.exponential(size=(count, len(names)))
        correct = generator.random(count) >= rising(values[:, 0])
        return Outcomes(
            names, values, [each[None] for each in values], correct, np.ones(count), [None] * count
        )

    population = rows(4_000)
    every, half = np.ones(200, bool), design_rows(200, 0.5)
    missed = {True: 0, False: 0}
    for _ in range(DRAWS):
        drawn = rows(200)
        for is_split in missed:
            model = fit_confidence(drawn, half if is_split else every, "isotonic")
            design = half if is_split else design_rows(200)
            found = certify_error(model.doubts(drawn), ~drawn.correct, design, 0.15, DELTA)
            if found is not None:
                answered = -model.of(population.whole) <= found.threshold
                missed[is_split] += (~population.correct[answered]).mean() > 0.15

    assert missed[True] / DRAWS <= most_by_chance(DELTA)
    assert missed[False] / DRAWS > most_by_chance(DELTA)
