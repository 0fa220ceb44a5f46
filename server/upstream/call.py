"""One call: its clock, and how long to wait before it is tried again.

In: the limits of an upstream, and what failed. Out: seconds. Knows no connection.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from softspec.server.upstream.faults import Fault

FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 8.0


class CallClock:
    """The time of one call, attempts and pauses together, but not what its reader takes between two chunks."""

    def __init__(self, timeout_s: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._began = self._loop.time()
        self._timeout_s = timeout_s
        self.attempts = 0

    @property
    def elapsed_s(self) -> float:
        return self._loop.time() - self._began

    @property
    def remaining_s(self) -> float:
        return self._timeout_s - self.elapsed_s

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Time that passes within is not the call's."""
        at = self._loop.time()
        try:
            yield
        finally:
            self._began += self._loop.time() - at

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Raise a Fault once the call takes too long."""
        async with limited(self.remaining_s, f"did not finish within {self._timeout_s:g} s"):
            yield


@asynccontextmanager
async def limited(seconds: float, told: str, is_transient: bool = False) -> AsyncIterator[None]:
    """Raise a Fault once what is within takes longer."""
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError:
        raise Fault("timeout", told, is_transient=is_transient) from None


def pause_s(attempts: int, fault: Fault) -> float:
    """How long to wait before the next attempt: full jitter, on top of what the upstream asks for."""
    longest = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2.0 ** (attempts - 1))
    return (fault.retry_after_s or 0.0) + random.uniform(0, longest)


def retry_after_s(header: str | None) -> float | None:
    """The seconds of a `Retry-After`, which is a number or a date; None where it says nothing that can be read."""
    if header is None:
        return None
    text = header.strip()
    if text.isascii() and text.isdecimal():
        return float(text)
    try:
        date = parsedate_to_datetime(text)
    except ValueError:
        return None
    return max(0.0, (date.replace(tzinfo=date.tzinfo or UTC) - datetime.now(UTC)).total_seconds())
