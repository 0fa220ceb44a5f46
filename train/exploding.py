"""Gradients that suddenly are far larger than they were.

In: the members' gradient norms before clipping, step after step. Out: a line for the user, seldom. Changes nothing.
"""

import statistics
from collections import deque
from collections.abc import Sequence

FACTOR = 100.0
WINDOW = 100
"""Steps of which the median is taken, and the fewest between two warnings."""
LEAST = 10
"""Steps without which there is no median to speak of."""


class Explosions:
    """Watches the largest norm of a step: that of one member is near zero whenever no example goes to it."""

    def __init__(self, max_grad_norm: float) -> None:
        self._clipped_above = max_grad_norm
        self._norms: deque[float] = deque(maxlen=WINDOW)
        self._quiet_until = 0

    def warning(self, step: int, norms: Sequence[float]) -> str | None:
        """What to tell the user of a step's norms (K,). One that is not even clipped is harmless."""
        largest = max(norms)
        usual = statistics.median(self._norms) if len(self._norms) >= LEAST else float("inf")
        self._norms.append(largest)
        if step < self._quiet_until or largest <= max(FACTOR * usual, self._clipped_above):
            return None
        self._quiet_until = step + WINDOW
        return (
            f"softspec: step {step}: the gradient norm of member {norms.index(largest)} is {largest:.3g}, usually "
            f"it is {usual:.3g}: look at the examples, or try a lower learning_rate"
        )
