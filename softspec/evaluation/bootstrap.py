"""Intervals by resampling whatever is independent: groups of rows, items that several rows are about, or rows.

In: statistics, functions of how much each row counts. Out: their values, and the middle 95 % of what they come to on
resampled data. The same draws for every model, so differences are paired. Knows no metric.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from softspec.evaluation.columns import Columns

FEWEST_UNITS = 10
"""Groups, or sources, of which there are fewer are taken as given: their own resampling would say little."""
CELLS_AT_ONCE = 2_000_000


@dataclass(frozen=True)
class Statistic:
    """A metric: from how much each row counts (..., N) to its value (...).

    `n` rows enter it. `reason` says why it may have no value, `notes` are numbers that belong beside it.
    """

    estimator: str
    evaluate: Callable[[Tensor], Tensor]
    n: int
    reason: str = "no row to count"
    notes: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Resampling:
    """What is drawn with replacement: `count` units, each of the rows whose number in `unit_of` (N,) is its own."""

    unit: str
    unit_of: Tensor
    weight: Tensor
    draws: int = 1000
    seed: int = 0

    @property
    def count(self) -> int:
        return int(self.unit_of.max()) + 1

    def weights(self) -> Iterator[Tensor]:
        """How much each row counts in each draw, (D, N), a part of the draws at a time."""
        generator = np.random.default_rng(self.seed)
        at_once = max(1, CELLS_AT_ONCE // len(self.unit_of))
        for first in range(0, self.draws, at_once):
            number = min(at_once, self.draws - first)
            drawn = generator.multinomial(self.count, np.full(self.count, 1 / self.count), size=number)
            yield torch.from_numpy(drawn)[:, self.unit_of].double() * self.weight


@dataclass(frozen=True)
class Sampled:
    """A statistic on the data, and on resampled data (D,)."""

    statistic: Statistic
    value: float
    draws: Tensor

    def minus(self, other: "Sampled") -> "Sampled":
        """The difference from the same statistic of another model."""
        return Sampled(self.statistic, self.value - other.value, self.draws - other.draws)


def resampling_of(columns: Columns, draws: int, seed: int) -> Resampling:
    """Groups where there are at least `FEWEST_UNITS`; else items, where rows share some; else rows."""
    group, item = columns.group, columns.item
    num_rows = len(item)
    alone = torch.arange(num_rows) + int(group.max()) + 1
    groups = _numbered(torch.where(group >= 0, group, alone))
    if int(group.max()) + 1 >= FEWEST_UNITS and int(groups.max()) + 1 < num_rows:
        return Resampling("group", groups, columns.weight, draws, seed)
    items = _numbered(item)
    unit = "item" if int(items.max()) + 1 < num_rows else "row"
    return Resampling(unit, items, columns.weight, draws, seed)


def sample(statistics: Mapping[str, Statistic], resampling: Resampling) -> dict[str, Sampled]:
    """Every statistic on the data and on each resampling of them."""
    parts: dict[str, list[Tensor]] = {name: [] for name in statistics}
    for weights in resampling.weights():
        for name, statistic in statistics.items():
            parts[name].append(statistic.evaluate(weights))
    return {
        name: Sampled(statistic, float(statistic.evaluate(resampling.weight)), torch.cat(parts[name]))
        for name, statistic in statistics.items()
    }


def described(sampled: Sampled, resampling: Resampling) -> dict[str, Any]:
    """Value, interval, number and name of the estimator, as the JSON has them; null with its reason."""
    statistic = sampled.statistic
    found: dict[str, Any] = {"value": None, "low": None, "high": None, "n": statistic.n}
    draws = sampled.draws[sampled.draws.isfinite()]
    if not np.isfinite(sampled.value):
        reason: str | None = statistic.reason
    else:
        found["value"] = sampled.value
        reason = _no_interval(draws, resampling)
        if reason is None:
            low, high = torch.quantile(draws, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
            found |= {"low": low, "high": high}
    return {
        **found,
        "estimator": statistic.estimator,
        **({"reason": reason} if reason else {}),
        **statistic.notes,
    }


def _no_interval(draws: Tensor, resampling: Resampling) -> str | None:
    if resampling.count < 2:
        return f"no interval: one {resampling.unit} only"
    if len(draws) < 0.9 * resampling.draws:
        return "no interval: without a value on most resampled data"
    if float(draws.max() - draws.min()) <= 1e-12:
        return "no interval: the same on all resampled data"
    return None


def _numbered(codes: Tensor) -> Tensor:
    """The same groups, numbered from 0 without gaps."""
    return codes.unique(return_inverse=True)[1]
