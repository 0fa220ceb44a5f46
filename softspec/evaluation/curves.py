"""What stands behind single numbers: risk at every coverage, and accuracy at every confidence, with intervals.

In: columns, and what is resampled. Out: points for a plot. The area under the first curve is `aurc`, the mean gap of
the second one `ece`; knows nothing of drawing.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from softspec.evaluation.bootstrap import Resampling
from softspec.evaluation.columns import Columns
from softspec.evaluation.statistics import CORRECT

NUM_BINS = 15
"""As in `expected_calibration_error`."""
Z = 1.959963984540054
"""The 97.5 % quantile of the normal distribution."""


@dataclass(frozen=True)
class RiskCoverage:
    """Error rate among the most certain share of rows: `coverage`, `risk`, `low` and `high` are (G,).

    `low` and `high` are the middle 95 % on resampled data; None where there is one unit only.
    """

    coverage: list[float]
    risk: list[float]
    low: list[float] | None
    high: list[float] | None
    n: int


@dataclass(frozen=True)
class Bin:
    """Rows whose confidence lies between `left` and `right`; `low` to `high` is Wilson's 95 % interval of `accuracy`.

    `units` is how many independent units the rows amount to, by their weights.
    """

    left: float
    right: float
    confidence: float
    accuracy: float
    low: float
    high: float
    n: int
    units: float


def risk_coverage(
    columns: Columns, uncertainty: str, resampling: Resampling, points: int = 100
) -> RiskCoverage | None:
    """The curve of one uncertainty; None where no row says what is right.

    Args:
        uncertainty: a name of `UNCERTAINTIES`.
        points: G, coverages from 1/G to 1.
    """
    right = columns.values.get(CORRECT[columns.form])
    if right is None or right.isnan().all() or uncertainty not in columns.values:
        return None
    rows = (~right.isnan()).nonzero()[:, 0]
    ranked, errors = columns.values[uncertainty][rows], 1 - right[rows]
    coverage = torch.arange(1, points + 1, dtype=torch.float64) / points
    risk = risk_at(coverage, ranked, errors, resampling.weight[rows])
    low, high = None, None
    if resampling.count > 1:
        draws = torch.cat(
            [risk_at(coverage, ranked, errors, weights[:, rows]) for weights in resampling.weights()]
        )
        known = draws[draws.isfinite().all(-1)]
        low, high = (known.quantile(level, 0).tolist() for level in (0.025, 0.975))
    return RiskCoverage(coverage.tolist(), risk.tolist(), low, high, len(rows))


def risk_at(coverage: Tensor, uncertainty: Tensor, errors: Tensor, weights: Tensor) -> Tensor:
    """Error rate of the most certain rows, (..., G), at each coverage (G,); rows that tie are in random order.

    Args:
        uncertainty, errors: (N,). weights: (..., N), how often each row counts.
    """
    levels, ties = uncertainty.unique(return_inverse=True)
    sizes = torch.zeros(*weights.shape[:-1], len(levels), dtype=torch.float64).index_add_(-1, ties, weights)
    wrong = torch.zeros_like(sizes).index_add_(-1, ties, weights * errors)
    seen, wrong_so_far = sizes.cumsum(-1), wrong.cumsum(-1)
    answered = coverage * seen[..., -1:]
    place = torch.searchsorted(seen, answered).clamp_max(len(levels) - 1)
    size, own, after, wrong_after = (each.gather(-1, place) for each in (sizes, wrong, seen, wrong_so_far))
    rate = own / torch.where(size > 0, size, 1.0)
    return (wrong_after - rate * (after - answered)) / answered


def reliability(columns: Columns, resampling: Resampling) -> list[Bin]:
    """Accuracy by confidence; empty for generation, which has no confidence, and where no row says what is right.

    Units with several rows in a bin count once, as if these were the same: the interval is rather too wide.
    """
    right = columns.values.get("accuracy")
    if right is None or right.isnan().all():
        return []
    rows = (~right.isnan()).nonzero()[:, 0]
    confidence, correct, weight = columns.values["confidence"][rows], right[rows], columns.weight[rows]
    number = (confidence * NUM_BINS).long().clamp(0, NUM_BINS - 1)
    found = []
    for place in number.unique().tolist():
        own = number == place
        mass = weight[own].sum()
        share = float(weight[own] @ correct[own] / mass)
        of_units = torch.zeros(resampling.count, dtype=torch.float64)
        of_units.index_add_(0, resampling.unit_of[rows][own], weight[own])
        units = float(mass.square() / of_units.square().sum())
        low, high = wilson(share, units)
        found.append(
            Bin(
                left=place / NUM_BINS,
                right=(place + 1) / NUM_BINS,
                confidence=float(weight[own] @ confidence[own] / mass),
                accuracy=share,
                low=low,
                high=high,
                n=int(own.sum()),
                units=units,
            )
        )
    return found


def wilson(share: float, n: float) -> tuple[float, float]:
    """95 % interval of a share that was seen in n independent trials; n and the number of successes may be fractions.

    Source: Wilson 1927, the score interval.
    """
    centre = (share + Z**2 / (2 * n)) / (1 + Z**2 / n)
    half = Z * math.sqrt(share * (1 - share) / n + Z**2 / (4 * n**2)) / (1 + Z**2 / n)
    return max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half))
