"""How long a newcomer would wait for a first token: who waits now, times how often a first token comes while they do.

In: requests that come, get their first token, and leave, with the moments. Out: seconds. A unit is a request, whatever
it costs: how dear they are is in how often first tokens come. Knows neither HTTP nor the engine.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from softspec.engine.meter import Clock, Meter

_MEMORY = 0.9
"""What a step of the engine still counts once another one has come: the mean is made of the last ten or so."""


class Queue:
    """The requests that wait for their first token; `now` is the clock of their meters."""

    def __init__(self, now: Clock) -> None:
        self._now = now
        self._waiting = 0
        self._since = 0.0
        self._last_step: float | None = None
        self._seconds = 0.0
        self._tokens = 0.0

    @contextmanager
    def waiting(self, meter: Meter) -> Iterator[None]:
        """While a request is answered: until its meter counts the first token it waits."""
        if self._waiting == 0:
            self._since = self._now()
        self._waiting += 1
        meter.on_first_token = self._begin
        try:
            yield
        finally:
            meter.on_first_token = None
            if meter.first_token_at is None:
                self._waiting -= 1

    def wait(self) -> float:
        """How long a newcomer would wait, seconds; 0 where nobody waits, so that there is always something to measure.

        It is at least as long as somebody has waited now since the last first token: an engine that hangs sends none.
        """
        if self._waiting == 0:
            return 0.0
        each = self._seconds / self._tokens if self._tokens else 0.0
        return max(self._waiting * each, self._now() - self._since)

    def _begin(self, now: float) -> None:
        """A request that waited has its first token; those of one step have theirs in the same moment."""
        if now != self._last_step:
            self._seconds = _MEMORY * self._seconds + now - self._since
            self._tokens *= _MEMORY
            self._last_step = now
        self._tokens += 1
        self._since = now
        self._waiting -= 1
