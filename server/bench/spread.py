"""From token times to samples, and from samples to medians, spreads and paired ratios. Pure arithmetic."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

MEASURES = ("ttft_s", "tpot_s", "tokens_per_s")
RATIOS = (
    ("ensemble", "member"),
    ("ensemble", "mixture"),
    ("members", "ensemble"),
    ("client", "ensemble"),
    ("reference", "ensemble"),
)


@dataclass(frozen=True)
class Sample:
    """One way in one repeat of one cell.

    ttft_s: median over users of the time to the first token, for prompts never seen before. tpot_s: time per token
    while all users decode together; None if they never did. tokens_per_s: all users' tokens, from the first request
    to the last token, new prompts included. `first_token_s` has the single users.
    """

    repeat: int
    place: int
    ttft_s: float
    tpot_s: float | None
    tokens_per_s: float
    first_token_s: tuple[float, ...]

    @classmethod
    def of(
        cls,
        repeat: int,
        place: int,
        sent: float,
        fresh: Sequence[Sequence[float]],
        warm: Sequence[Sequence[float]],
    ) -> "Sample":
        """From the arrival of every user's tokens: for prompts sent first at `sent`, and for the same sent again."""
        first = tuple(times[0] - sent for times in fresh)
        took = max(times[-1] for times in fresh) - sent
        rate = sum(map(len, fresh)) / took
        return cls(repeat, place, statistics.median(first), time_per_token(warm), rate, first)


def time_per_token(users: Sequence[Sequence[float]]) -> float | None:
    """Mean over users of the time between tokens from when the last user has begun until the first has finished."""
    begin = max(times[0] for times in users)
    end = min(times[-1] for times in users)
    together = [[time for time in times if begin <= time <= end] for times in users]
    if any(len(times) < 2 for times in together):
        return None
    return statistics.fmean((times[-1] - times[0]) / (len(times) - 1) for times in together)


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


def paired_ratios(above: Sequence[Sample], below: Sequence[Sample], measure: str) -> list[float]:
    """`above` / `below` within each repeat that has both."""
    divisors = {sample.repeat: getattr(sample, measure) for sample in below}
    pairs = [(getattr(sample, measure), divisors.get(sample.repeat)) for sample in above]
    return [value / divisor for value, divisor in pairs if value is not None and divisor]


def summarise(samples: Mapping[str, Sequence[Sample]]) -> dict[str, Any]:
    """A cell's spreads by way and measure, and its ratios by `way/way` and measure."""
    spreads = {
        way: {measure: _plain(Spread.of(_known(found, measure))) for measure in MEASURES}
        for way, found in samples.items()
    }
    ratios = {
        f"{above}/{below}": {
            measure: _plain(Spread.of(paired_ratios(samples[above], samples[below], measure)))
            for measure in ("ttft_s", "tpot_s")
        }
        for above, below in RATIOS
        if above in samples and below in samples
    }
    return {"spreads": spreads, "ratios": ratios}


def _known(samples: Sequence[Sample], measure: str) -> list[float]:
    values = (getattr(sample, measure) for sample in samples)
    return [value for value in values if value is not None]


def _plain(spread: Spread | None) -> dict[str, Any] | None:
    return asdict(spread) if spread else None
