"""From samples to medians, spreads and paired ratios.

In: samples, dataclasses with a `repeat`. Out: plain JSON types, and columns of a table. Pure arithmetic.
"""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Spread:
    """Of `count` repeats."""

    median: float
    min: float
    quartile_1: float
    quartile_3: float
    max: float
    count: int

    @classmethod
    def of(cls, values: Iterable[float]) -> "Spread | None":
        """None if there is nothing."""
        found = sorted(values)
        if not found:
            return None
        first, middle, third = (
            statistics.quantiles(found, n=4, method="inclusive") if found[1:] else found * 3
        )
        return cls(middle, found[0], first, third, found[-1], len(found))


@dataclass(frozen=True)
class Summary:
    """What is told of a cell: the spreads of `measures`, and the ratios of those `compared`, for `pairs` of ways.

    A measure is an attribute of a sample; None is left out.
    """

    measures: tuple[str, ...]
    compared: tuple[str, ...]
    pairs: tuple[tuple[str, str], ...]

    def of(self, samples: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
        """Spreads by way and measure, and ratios by `way/way` and measure, as plain JSON types."""
        spreads = {
            way: {measure: _plain(Spread.of(_known(found, measure))) for measure in self.measures}
            for way, found in samples.items()
        }
        ratios = {
            f"{above}/{below}": {
                measure: _plain(Spread.of(paired_ratios(samples[above], samples[below], measure)))
                for measure in self.compared
            }
            for above, below in self.pairs
            if above in samples and below in samples
        }
        return {"spreads": spreads, "ratios": ratios}


def paired_ratios(above: Sequence[Any], below: Sequence[Any], measure: str) -> list[float]:
    """`above` / `below` within each repeat that has both."""
    divisors = {sample.repeat: getattr(sample, measure) for sample in below}
    pairs = [(getattr(sample, measure), divisors.get(sample.repeat)) for sample in above]
    return [value / divisor for value, divisor in pairs if value is not None and divisor]


def shown(spread: Mapping[str, float] | None, factor: float, digits: int) -> str:
    """A plain spread as a column of 26 characters: the median, and the extremes in brackets."""
    if spread is None:
        return f"{'-':>26}"
    median, low, high = (spread[key] * factor for key in ("median", "min", "max"))
    return f"{f'{median:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})':>26}"


def _known(samples: Sequence[Any], measure: str) -> list[float]:
    values = (getattr(sample, measure) for sample in samples)
    return [value for value in values if value is not None]


def _plain(spread: Spread | None) -> dict[str, Any] | None:
    return asdict(spread) if spread else None
