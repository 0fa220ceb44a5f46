"""What sources gain from adapters of their own, and whether that pays what routing costs.

In: how likely rows are under one adapter for all sources and under one for each. Out: gains with intervals, and for any
alpha and any number of rows that are routed together what specialists would gain over one adapter. Knows no models.

A unit that goes to one of K members costs (1/alpha) log K nats in the loss, or less where members can share it. So the
loss itself is compared: that of the sources' own adapters as members of an ensemble, and that of the one adapter, on
units of so many rows of one source.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from softspec.maths.mixture import uniform_log_weights
from softspec.maths.renyi import renyi_loss
from softspec.maths.stability import Estimate, bootstrap

UNITS = 2000
"""Units that are drawn for a value, and a tenth of that for each draw of its interval."""
DRAWS = 200


@dataclass(frozen=True)
class Judged:
    """N rows under one adapter, `together` (N,), and under those of S sources, `apart` (S, N); nats.

    Row n is of source `source_of[n]` and counts `weights[n]` times.
    """

    sources: tuple[str, ...]
    together: Tensor
    apart: Tensor
    source_of: Tensor
    weights: Tensor

    def gains(self) -> Tensor:
        """What its own source's adapter gains on each row over the one for all, (N,), nats."""
        own = self.apart.gather(0, self.source_of[None])[0]
        return own - self.together

    def rows_of(self, source: int) -> Tensor:
        """The numbers of a source's rows."""
        return (self.source_of == source).nonzero()[:, 0]


def price_nats(renyi_alpha: float, num_members: int) -> float:
    """What the loss charges for a unit that one of K equally frequent members explains alone: (1/alpha) log K nats."""
    return math.log(num_members) / renyi_alpha if renyi_alpha else math.inf


def mean_gain(judged: Judged, source: int | None = None, seed: int = 0) -> Estimate:
    """Nats that a row gains from its own source's adapter, the mean over one source's rows or over all."""
    rows = torch.arange(len(judged.together)) if source is None else judged.rows_of(source)
    gains, weights = judged.gains()[rows], judged.weights[rows]
    return bootstrap(lambda counts: counts @ (weights * gains) / (counts @ weights), len(rows), seed)


def advantages(
    judged: Judged, orders: Sequence[float], group_rows: int, num_members: int, seed: int = 0
) -> list[Estimate]:
    """How much lower the loss of specialists is than that of one adapter, nats per row; above 0 specialising pays.

    Specialists are the sources' adapters, or of more sources than members the choice of them that does best. The
    interval is over rows, drawn again within their sources.

    Args:
        orders: those of the loss, one for each estimate.
        group_rows: how many rows of one source are routed as one.
    """
    generator = torch.Generator().manual_seed(seed)
    together, apart = _units(judged, group_rows, UNITS, generator)
    choices = [_best_members(apart, min(num_members, len(apart)), order) for order in orders]

    def compare(together: Tensor, apart: Tensor) -> list[float]:
        pairs = zip(orders, choices, strict=True)
        return [_mean_advantage(together, apart[chosen], order) / group_rows for order, chosen in pairs]

    values = compare(together, apart)
    draws = torch.tensor(
        [
            compare(*_units(_drawn_again(judged, generator), group_rows, UNITS // 10, generator))
            for _ in range(DRAWS)
        ]
    )
    lows, highs = torch.quantile(draws, torch.tensor([0.025, 0.975]), dim=0).tolist()
    return [
        Estimate(value, low, high, len(judged.together))
        for value, low, high in zip(values, lows, highs, strict=True)
    ]


def _mean_advantage(together: Tensor, apart: Tensor, renyi_alpha: float) -> float:
    return (-together - renyi_loss(apart, uniform_log_weights(len(apart)), renyi_alpha)).mean().item()


def _best_members(apart: Tensor, count: int, renyi_alpha: float) -> list[int]:
    """Which sources' adapters make the best members of so many, each added where it helps most."""
    chosen: list[int] = []
    while len(chosen) < count:
        left = [each for each in range(len(apart)) if each not in chosen]
        losses = [
            renyi_loss(apart[[*chosen, each]], uniform_log_weights(len(chosen) + 1), renyi_alpha).mean()
            for each in left
        ]
        chosen.append(left[int(torch.stack(losses).argmin())])
    return chosen


def _units(judged: Judged, group_rows: int, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Log-likelihoods of units of so many rows of one source, drawn with replacement: (U,) and (S, U)."""
    of_source = torch.stack([judged.weights[judged.rows_of(each)].sum() for each in range(len(judged.apart))])
    sources = torch.multinomial(of_source, count, replacement=True, generator=generator)
    rows = torch.empty(count, group_rows, dtype=torch.long)
    for source in sources.unique().tolist():
        own, here = judged.rows_of(source), sources == source
        drawn = torch.multinomial(
            judged.weights[own], int(here.sum()) * group_rows, replacement=True, generator=generator
        )
        rows[here] = own[drawn].view(-1, group_rows)
    return judged.together[rows].sum(-1), judged.apart[:, rows].sum(-1)


def _drawn_again(judged: Judged, generator: torch.Generator) -> Judged:
    """As many rows of each source, drawn with replacement."""
    rows = []
    for source in range(len(judged.apart)):
        own = judged.rows_of(source)
        if len(own):
            rows.append(own[torch.randint(len(own), (len(own),), generator=generator)])
    chosen = torch.cat(rows)
    return replace(
        judged,
        together=judged.together[chosen],
        apart=judged.apart[:, chosen],
        source_of=judged.source_of[chosen],
        weights=judged.weights[chosen],
    )
