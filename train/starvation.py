"""Members to which no example goes.

In: the members' load, step after step. Out: who has starved for too long, and what to tell the user. Changes nothing.
"""

import math
from collections.abc import Sequence

STARVED_SHARE = 0.1
"""A member with less than this part of a fair share, 1 / K, of the examples starves."""


def patience_of(total_steps: int) -> int:
    """Steps after which it is no accident: 5 % of a run, at least ten."""
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

    def warning(self, member: int) -> str:
        """One line for the user."""
        return (
            f"softspec: member {member} has had less than {STARVED_SHARE:g} of a fair share of examples for "
            f"{self.patience} steps: try responsibility_floor, a lower renyi_alpha or fewer members"
        )
