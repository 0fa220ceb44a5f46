"""From the times of tokens to the samples of `softspec bench serve`, and what is told of them."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from softspec.app.bench.core.spread import Summary

SUMMARY = Summary(
    measures=("ttft_s", "tpot_s", "tokens_per_s"),
    compared=("ttft_s", "tpot_s"),
    pairs=(
        ("ensemble", "member"),
        ("unshared", "ensemble"),
        ("ensemble", "mixture"),
        ("members", "ensemble"),
        ("client", "ensemble"),
        ("reference", "ensemble"),
    ),
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
