"""What keys may still spend in this minute: requests, tokens, and requests at once.

In: the name of a key and its limits. Out: the headers that tell what is left, or an error that says when to come back.
A minute begins with the first request in it, so up to twice a limit may pass around its end. What a request costs is
known when it has ended: it is let in while anything of the minute's tokens is left, so a key may go over by what is
being answered. Knows no HTTP.
"""

import asyncio
import math
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from softspec.errors import RateLimitError
from softspec.server.access.callers import Caller
from softspec.server.access.counts import Count, Counts


@dataclass(frozen=True)
class Spent:
    """What of one limit is spent; `kind` is its name in headers."""

    kind: str
    limit: int
    count: Count

    @property
    def left(self) -> int:
        """What may still be spent."""
        return max(self.limit - self.count.amount, 0)

    @property
    def headers(self) -> dict[str, str]:
        """The headers that OpenAI's clients read."""
        return {
            f"x-ratelimit-limit-{self.kind}": str(self.limit),
            f"x-ratelimit-remaining-{self.kind}": str(self.left),
            f"x-ratelimit-reset-{self.kind}": f"{math.ceil(self.count.seconds_left)}s",
        }


class Budget:
    """The budgets of all keys; those of a minute are in `counts`, what runs is counted here."""

    def __init__(self, counts: Counts) -> None:
        self._counts = counts
        self._running: Counter[str] = Counter()
        self._spending: set[asyncio.Task[Count]] = set()

    async def begin(self, caller: Caller, asks: bool) -> dict[str, str]:
        """Count a request; the headers of its answer, whatever that is. `asks`: whether it will cost tokens.

        Raises:
            RateLimitError: the minute's requests or tokens are spent.
        """
        spent = []
        if (limit := caller.key.requests_per_minute) is not None:
            spent.append(Spent("requests", limit, await self._counts.add(f"{caller.name}/requests", 1)))
        if (limit := caller.key.tokens_per_minute) is not None:
            spent.append(Spent("tokens", limit, await self._counts.read(f"{caller.name}/tokens")))
        headers = {name: value for each in spent for name, value in each.headers.items()}
        for each in spent:
            if each.count.amount > each.limit if each.kind == "requests" else asks and each.left == 0:
                raise _come_back(caller, each, headers)
        return headers

    @contextmanager
    def running(self, caller: Caller) -> Iterator[None]:
        """While a request is answered.

        Raises:
            RateLimitError: as many are answered as the key may have at once.
        """
        limit = caller.key.concurrent_requests
        if limit is not None and self._running[caller.name] >= limit:
            raise RateLimitError(
                f"the API key '{caller.name}' has {limit} requests at once, and may have no more: wait for one to end",
                {"Retry-After": "1"},
            )
        self._running[caller.name] += 1
        try:
            yield
        finally:
            self._running[caller.name] -= 1

    async def spend(self, caller: Caller, num_tokens: int) -> None:
        """Count what a request has cost, even if it is being cancelled."""
        if caller.key.tokens_per_minute is not None and num_tokens > 0:
            counting = asyncio.create_task(self._counts.add(f"{caller.name}/tokens", num_tokens))
            self._spending.add(counting)
            counting.add_done_callback(self._spending.discard)
            await asyncio.shield(counting)


def _come_back(caller: Caller, spent: Spent, headers: dict[str, str]) -> RateLimitError:
    seconds = max(math.ceil(spent.count.seconds_left), 1)
    return RateLimitError(
        f"the API key '{caller.name}' may have {spent.limit} {spent.kind} a minute, and they are spent: come back in "
        f"{seconds} s",
        {**headers, "Retry-After": str(seconds)},
    )
