"""What a diagnosis found: plain numbers, from which words and tables are made.

In: the results of the probes that ran. Out: one frozen `Findings`, and its JSON form. Knows no models.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from softspec.maths.stability import CriticalAlpha, Estimate
from softspec.train.config import TrainConfig
from softspec.train.diagnosis.ambiguity import Ambiguity
from softspec.train.diagnosis.growth import APART_NATS, Growth
from softspec.train.diagnosis.price import price_nats

ROWS = (1, 2, 4, 8, 16, 32)
"""Rows of one source together, of which it is told whether they would pay."""
ORDERS = (0.3, 0.5, 0.8, 1.0)


@dataclass(frozen=True)
class Setting:
    """What of a run's configuration decides whether members part.

    `rows_together` are routed as one; `groups_per_step` is how many such groups a step has, None where none are routed.
    """

    num_members: int
    renyi_alpha: float
    granularity: str
    rows_together: int
    groups_per_step: int | None
    micro_batch_size: int
    total_steps: int

    @classmethod
    def of(cls, config: TrainConfig, total_steps: int, groups_per_step: int | None) -> "Setting":
        """That of a configuration whose run has so many steps."""
        together = config.group_rows if config.granularity == "group" else 1
        return cls(
            config.num_members,
            config.renyi_alpha,
            config.granularity,
            together,
            groups_per_step,
            config.micro_batch_size,
            total_steps,
        )


@dataclass(frozen=True)
class SourceGains:
    """What sources gain from adapters of their own after `steps`, nats per row, and what specialists would gain.

    `advantages`: (alpha, rows together) -> how much lower the loss of specialists is than that of one adapter, per row.
    """

    steps: int
    left_out: int
    gains: Mapping[str, Estimate]
    mean: Estimate
    advantages: Mapping[tuple[float, int], Estimate]

    def pays(self, renyi_alpha: float, rows: int) -> bool:
        """Whether specialists clearly have the lower loss."""
        return self.advantages[renyi_alpha, rows].low > 0

    def fewest_rows(self, renyi_alpha: float) -> int | None:
        """The fewest rows together that pay at this order."""
        return min(
            (rows for order, rows in self.advantages if order == renyi_alpha and self.pays(order, rows)),
            default=None,
        )

    def least_alpha(self, rows: int) -> float | None:
        """The least order at which so many rows together pay."""
        return min(
            (order for order, number in self.advantages if number == rows and self.pays(order, rows)),
            default=None,
        )

    def cheapest(self) -> tuple[float, int] | None:
        """The fewest rows together that pay at any order, and the least order for them."""
        paying = [(rows, order) for order, rows in self.advantages if self.pays(order, rows)]
        return (min(paying)[1], min(paying)[0]) if paying else None


@dataclass(frozen=True)
class Stability:
    """The critical alpha around one adapter, for units as they are routed and for other numbers of rows together.

    `lowest_curvature` is the smallest eigenvalue of V - alpha J that was found, at the run's alpha, beside the largest
    curvature in that direction: negative, and members part.
    """

    critical: CriticalAlpha
    by_rows: Mapping[int, CriticalAlpha]
    lowest_curvature: float


@dataclass(frozen=True)
class Findings:
    """All that was found; None is what was not asked for or cannot be told, and `notes` say why."""

    setting: Setting
    ambiguity: Ambiguity | None = None
    sources: SourceGains | None = None
    stability: Stability | None = None
    growth: Growth | None = None
    notes: tuple[str, ...] = ()

    @property
    def are_apart(self) -> bool:
        """Whether members have parted: held-out units say so, or else the run's log."""
        if self.ambiguity:
            spread = math.log(self.setting.num_members) - math.log(self.ambiguity.routing_perplexity)
            return spread >= APART_NATS
        return self.growth is not None and self.growth.is_finished and self.growth.are_apart


def _estimate(found: Estimate | None) -> dict[str, float | int | None] | None:
    if found is None:
        return None
    return {
        "value": _finite(found.value),
        "low": _finite(found.low),
        "high": _finite(found.high),
        "n": found.n,
    }


def _critical(found: CriticalAlpha) -> dict[str, Any]:
    ends = {"value": found.value, "low": found.low, "high": found.high}
    return {
        **{name: _finite(value) for name, value in ends.items()},
        "n": found.n,
        "phi": _estimate(found.phi),
    }


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) else None


def as_json(findings: Findings) -> dict[str, Any]:
    """The findings by name; an infinite number, such as a critical alpha where nothing pulls, is null."""
    setting, ambiguity, growth = findings.setting, findings.ambiguity, findings.growth
    sources, stability = findings.sources, findings.stability
    return {
        "setting": vars(setting),
        "ambiguity": ambiguity
        and {
            name: _estimate(value) if isinstance(value, Estimate) else value
            for name, value in vars(ambiguity).items()
        },
        "sources": sources
        and {
            "steps": sources.steps,
            "left_out": sources.left_out,
            "price_nats": _finite(price_nats(setting.renyi_alpha, setting.num_members)),
            "gain_per_row": _estimate(sources.mean),
            "gains": {name: _estimate(gain) for name, gain in sources.gains.items()},
            "advantages": _rows_of(sources.advantages),
            "fewest_rows": sources.fewest_rows(setting.renyi_alpha) if setting.renyi_alpha else None,
            "least_alpha": sources.least_alpha(setting.rows_together),
        },
        "stability": stability
        and {
            "critical_alpha": _critical(stability.critical),
            "by_rows": [{"rows": rows, **_critical(found)} for rows, found in stability.by_rows.items()],
            "lowest_curvature": stability.lowest_curvature,
        },
        "growth": growth
        and {
            "steps": list(growth.steps),
            "spread": list(growth.spreads),
            "rate_per_step": _estimate(growth.rate),
            "control_per_step": _estimate(growth.control),
            "steps_to_go": growth.steps_to_go,
        },
        "notes": list(findings.notes),
    }


def _rows_of(advantages: Mapping[tuple[float, int], Estimate]) -> Sequence[dict[str, Any]]:
    return [
        {"renyi_alpha": order, "rows": rows, **(_estimate(found) or {})}
        for (order, rows), found in advantages.items()
    ]
