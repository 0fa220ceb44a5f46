"""Whether two shares, or two histograms, differ by more than chance makes them.

In: counts. Out: 95 % intervals and a p-value. Standard library alone, as whoever runs a server may have no scipy.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

LEVEL = 0.95
_Z = NormalDist().inv_cdf((1 + LEVEL) / 2)
_LEAST_EXPECTED = 5
"""Chi-square is trusted where so many are expected in every cell (Cochran 1954)."""


@dataclass(frozen=True)
class Interval:
    """A number, and the bounds between which it lies."""

    value: float
    low: float
    high: float

    @property
    def is_more_than_chance(self) -> bool:
        """Whether a difference with these bounds is one: they do not hold 0."""
        return not self.low <= 0 <= self.high


def share(count: float, total: float) -> Interval:
    """A share of a total above 0. Source: Wilson 1927, the score interval."""
    found = count / total
    middle = (found + _Z**2 / (2 * total)) / (1 + _Z**2 / total)
    half = _Z / (1 + _Z**2 / total) * math.sqrt(found * (1 - found) / total + _Z**2 / (4 * total**2))
    return Interval(found, max(middle - half, 0.0), min(middle + half, 1.0))


def difference(one: Interval, other: Interval) -> Interval:
    """How much larger the other share is. Source: Newcombe 1998, method 10."""
    found = other.value - one.value
    down = math.hypot(other.value - other.low, one.high - one.value)
    up = math.hypot(other.high - other.value, one.value - one.low)
    return Interval(found, found - down, found + up)


@dataclass(frozen=True)
class ChiSquare:
    """Pearson's test that two histograms come from one distribution."""

    statistic: float
    degrees: int
    p: float

    @property
    def is_more_than_chance(self) -> bool:
        """Whether so large a difference is rarer than the level allows."""
        return self.p < 1 - LEVEL


def same_distribution(one: Sequence[float], other: Sequence[float]) -> ChiSquare | None:
    """The test over buckets that are merged until enough is expected in each; None where one bucket is left."""
    rows = _merged(one, other)
    totals = [sum(row) for row in zip(*rows, strict=True)] if rows else []
    if len(rows) < 2:
        return None
    everything = sum(totals)
    statistic = sum(
        (count - sum(row) * total / everything) ** 2 / (sum(row) * total / everything)
        for row in rows
        for count, total in zip(row, totals, strict=True)
    )
    return ChiSquare(statistic, len(rows) - 1, chi_square_tail(statistic, len(rows) - 1))


def chi_square_tail(statistic: float, degrees: int) -> float:
    """P(X > statistic) of the chi-square distribution: the upper incomplete gamma function at half a whole number."""
    half = statistic / 2
    order, tail = (1.0, math.exp(-half)) if degrees % 2 == 0 else (0.5, math.erfc(math.sqrt(half)))
    while order < degrees / 2:
        tail += half**order * math.exp(-half) / math.gamma(order + 1)
        order += 1
    return min(tail, 1.0)


def _merged(one: Sequence[float], other: Sequence[float]) -> list[tuple[float, float]]:
    """Pairs of counts of neighbouring buckets; what is left at the end joins the last pair."""
    totals = sum(one), sum(other)
    if not all(totals):
        return []
    least = _LEAST_EXPECTED * sum(totals) / min(totals)
    rows: list[tuple[float, float]] = []
    here = (0.0, 0.0)
    for pair in zip(one, other, strict=True):
        here = here[0] + pair[0], here[1] + pair[1]
        if sum(here) >= least:
            rows.append(here)
            here = (0.0, 0.0)
    if rows:
        rows[-1] = rows[-1][0] + here[0], rows[-1][1] + here[1]
    return rows
