"""The health of a run: members to which no example goes, and gradients that suddenly are far larger than they were.

In: the members' load and gradient norms, step after step. Out: who has starved for too long, and lines for the user.
Changes nothing.
"""

import math
import statistics
from collections import deque
from collections.abc import Sequence

STARVED_SHARE = 0.1
"""A member with less than this part of a fair share, 1 / K, of the examples starves."""


def patience_of(total_steps: int) -> int:
    """Steps in a row after which starving is no accident: 5 % of a run, at least ten."""
    return max(10, math.ceil(0.05 * total_steps))


class Starvation:
    """Watches for members that no example goes to: they stay near the base, and the others do all the work."""

    def __init__(self, num_members: int, patience: int) -> None:
        self.patience = patience
        self.starved_for = [0] * num_members

    def begins(self, load: Sequence[float]) -> list[int]:
        """Members that have starved for `patience` steps in a row as of this step, whose load (K,) is given."""
        least = STARVED_SHARE / len(load)
        self.starved_for = [
            steps + 1 if share < least else 0 for steps, share in zip(self.starved_for, load, strict=True)
        ]
        return [member for member, steps in enumerate(self.starved_for) if steps == self.patience]

    def warning(self, member: int, donor: int | None = None) -> str:
        """One line for the user about a member that starves, or that began anew as a copy of `donor`."""
        remedy = "try responsibility_floor, a lower renyi_alpha or fewer members"
        if donor is not None:
            remedy = f"it began anew beside member {donor}"
        return (
            f"softspec: member {member} has had less than {STARVED_SHARE:g} of a fair share of examples for "
            f"{self.patience} steps: {remedy}"
        )


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
        """What to tell the user of a step's gradient norms (K,), if anything; one that is not clipped is harmless."""
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
