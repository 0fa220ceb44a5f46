"""Thresholds that keep a target, with a guarantee for any number of rows.

In: how doubtful each answer was, and whether it was wrong. Out: the largest threshold that is certified for the target,
or how many more rows would be needed. Knows no metrics and no curves.

The error rate among answered requests is a ratio whose denominator depends on the threshold. For a threshold t that was
fixed before, the errors among the n rows that it answers are Binomial(n, R(t)), given n: so a binomial test of
"R(t) > target" is exact, whatever the distribution. Learn-then-Test (Angelopoulos et al. 2021) makes of such tests a
choice between thresholds: a few rows, the design, say which thresholds are tried and in which order; all others test
them in that order, each at level delta, until one fails; the last that passed is taken. That a threshold with R(t)
above the target passes has at most the probability delta, over draws of the rows. (Conformal risk control bounds
another number: the mean over such draws of the share of all requests that is answered and wrong.) Rows must be
independent draws from the distribution of the requests to come.
"""

import math
from dataclasses import dataclass

import numpy as np
from scipy.optimize import isotonic_regression
from scipy.special import bdtr
from scipy.stats import binom

from softspec.calibration.outcomes import Flags, Numbers

NUM_STEPS = 20
"""The most thresholds that are tried for one target."""
DESIGN_SHARE = 0.2
"""Of the rows, where nothing else was fitted to them."""
_ROWS = np.unique(np.geomspace(1, 1e7, 400).astype(int))
"""Numbers of answered rows among which the one that is needed is looked for."""


@dataclass(frozen=True)
class Certified:
    """A threshold, and what `num_rows` rows that were not used to choose candidates say of it."""

    threshold: float
    num_answered: int
    num_wrong: int
    num_rows: int


@dataclass(frozen=True)
class Refused:
    """No threshold could be certified; `rows_needed` in all, estimated, or None if more rows would not help."""

    reason: str
    rows_needed: int | None


def design_rows(num_rows: int, share: float = DESIGN_SHARE, seed: int = 0) -> Flags:
    """(N,): which rows choose the candidates; drawn without a look at them."""
    chosen = np.zeros(num_rows, dtype=bool)
    chosen[np.random.default_rng(seed).permutation(num_rows)[: math.ceil(share * num_rows)]] = True
    return chosen


def certify_error(
    doubts: Numbers, wrong: Flags, design: Flags, target: float, delta: float
) -> Certified | None:
    """The threshold under which at most `target` of the answered are wrong, with probability 1 - delta.

    Args:
        doubts: (N,); a row is answered if its doubt is not above the threshold. wrong, design: (N,).
    Returns:
        None if no threshold passed the test; `why_no_error` says why.
    """
    tested = ~design
    candidates = _candidates(doubts[design], wrong[design], int(tested.sum()), target)
    order = np.argsort(doubts[tested])
    answered = np.searchsorted(doubts[tested][order], candidates, side="right")
    errors = np.append(0, np.cumsum(wrong[tested][order]))[answered]
    passed = (answered > 0) & (bdtr(errors, answered, target) <= delta)
    last = int(np.argmin(np.append(passed, False))) - 1
    if last < 0:
        return None
    return Certified(float(candidates[last]), int(answered[last]), int(errors[last]), len(order))


def certify_coverage(doubts: Numbers, wrong: Flags, target: float, delta: float) -> Certified | None:
    """The smallest threshold that answers at least `target` of the requests, with probability 1 - delta.

    The share of requests below the k-th of N doubts is at least the k-th of N uniform numbers, which is below `target`
    with the probability that Binomial(N, target) is at least k.

    Returns:
        None if there are too few rows; `why_no_coverage` says how few.
    """
    num_rows = len(doubts)
    place = int(binom.isf(delta, num_rows, target)) + 1
    if place > num_rows:
        return None
    # Answers that are never judged are answered under any threshold.
    threshold = max(np.sort(doubts)[place - 1], doubts[np.isfinite(doubts)].min(initial=np.inf))
    answered = doubts <= threshold
    return Certified(float(threshold), int(answered.sum()), int((answered & wrong).sum()), num_rows)


def why_no_error(doubts: Numbers, wrong: Flags, design: Flags, target: float, delta: float) -> Refused:
    """Why nothing passed, and about how many rows would do if they were like these."""
    tested_share = float((~design).mean())
    num_tested, fewest = int((~design).sum()), math.ceil(math.log(delta) / math.log1p(-target))
    _, coverage, error = _risk_by_threshold(doubts, wrong)
    steps = np.flatnonzero(error < target)
    if len(steps):
        passes = bdtr(np.floor(error[steps, None] * _ROWS), _ROWS, target) <= delta
        needed = np.where(passes.any(axis=1), _ROWS[passes.argmax(axis=1)], np.inf) / coverage[steps]
        rows = max(float(needed.min()), fewest) / tested_share
        few = (
            f"{num_tested} rows to test it are too few"
            if num_tested < fewest
            else "no threshold passed the test"
        )
        return Refused(few, math.ceil(rows) if math.isfinite(rows) else None)
    least = f"{error.min():.1%}" if len(error) else "unknown, as none was judged"
    enough = num_tested >= fewest
    return Refused(
        f"of the surest answers the share that is wrong is estimated at {least}",
        None if enough else math.ceil(fewest / tested_share),
    )


def why_no_coverage(num_rows: int, target: float, delta: float) -> Refused:
    """How many rows a share of answers needs."""
    return Refused(f"{num_rows} rows are too few", math.ceil(math.log(delta) / math.log(target)))


def _candidates(doubts: Numbers, wrong: Flags, num_tested: int, target: float) -> Numbers:
    """Thresholds to be tried, rising from the one that is likeliest to pass; by the design alone."""
    values, coverage, error = _risk_by_threshold(doubts, wrong)
    if not len(values):
        return values
    expected = (coverage * num_tested).astype(int)
    start = int(np.argmin(bdtr(np.floor(error * expected), expected, target)))
    return values[np.unique(np.linspace(start, len(values) - 1, NUM_STEPS).round().astype(int))]


def _risk_by_threshold(doubts: Numbers, wrong: Flags) -> tuple[Numbers, Numbers, Numbers]:
    """Every threshold that differs, the share that it answers, and an estimate of the errors among these.

    The estimate is that of an error rate which rises with the doubt, with half an error added.
    """
    order = np.argsort(doubts, kind="stable")
    doubts = doubts[order]
    count = np.arange(1, len(doubts) + 1)
    error = (np.cumsum(isotonic_regression(wrong[order]).x) + 0.5) / (count + 1)
    last = np.append(doubts[1:] != doubts[:-1], True) & np.isfinite(doubts)
    return doubts[last], (count / len(doubts))[last], error[last]
