"""The circuit breaker of one upstream: who fails again and again is left alone for a while.

In: how attempts ended. Out: whether another one may begin. Knows no HTTP.

Ours, because no library does this: purgatory 3 and circuitbreaker 2 let every caller through once the pause is over,
where one would do to see, and purgatory takes a caller who went away (`CancelledError`) for a failure; pybreaker 1.4
guards threads, not tasks.
"""

import time
from collections.abc import Callable


class CircuitBreaker:
    """Closed, it lets all through; after `failures` failed attempts in a row it is open for `open_s` seconds.

    Then it lets one through at a time, the probe: when that is answered it is closed, when that fails it is open again.
    What was admitted before it opened no longer counts.
    """

    def __init__(
        self,
        failures: int,
        open_s: float,
        on_change: Callable[[bool], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._most_failures = failures
        self._open_s = open_s
        self._on_change = on_change
        self._clock = clock
        self._failures = 0
        self._open_until: float | None = None
        self._probing = False
        self._era = 0

    @property
    def wait_s(self) -> float | None:
        """How long nothing is let through, in seconds: 0 while a probe is under way; None where one may begin."""
        if self._open_until is None:
            return None
        rest = self._open_until - self._clock()
        return rest if rest > 0 else 0.0 if self._probing else None

    def admit(self) -> int | None:
        """A permit for one attempt, to be given back with its end; None when nothing is let through."""
        if self.wait_s is not None:
            return None
        if self._open_until is not None:
            self._probing = True
            self._era += 1
        return self._era

    def answered(self, permit: int) -> None:
        """The upstream began to answer: a probe has found out what it was to find out."""
        if permit == self._era and self._open_until is not None:
            self._open_until, self._probing = None, False
            self._on_change(False)

    def succeeded(self, permit: int) -> None:
        """The upstream answered to the end, which is the end of its failures in a row."""
        self.answered(permit)
        if permit == self._era:
            self._failures = 0

    def failed(self, permit: int) -> None:
        """The attempt failed, through no fault of the caller."""
        if permit != self._era:
            return
        self._failures += 1
        if self._open_until is not None or self._failures >= self._most_failures:
            was_closed = self._open_until is None
            self._open_until, self._probing = self._clock() + self._open_s, False
            self._failures = 0
            self._era += 1
            if was_closed:
                self._on_change(True)

    def withdrawn(self, permit: int) -> None:
        """The attempt ended without telling anything of the upstream; a probe makes way for another."""
        if permit == self._era:
            self._probing = False
