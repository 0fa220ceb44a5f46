"""What calibration learns from: rows that an ensemble answered, with their metrics and whether they were right.

In: metrics of answers, whole and at every prefix that a policy judges. Out: arrays. Knows no ensemble and no curve.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from softspec.errors import DataError

FEWEST = 50
"""Of fewer rows no curve is fitted."""
Numbers = NDArray[np.float64]
Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class Outcomes:
    """N rows and the M metrics by which they are judged.

    `whole` (N, M): of whole answers. `prefixes`: N arrays (T, M), of the prefixes that a policy judges; none if an
    answer was over before. `correct` (N,). `raw` (N,): the probability that the mixture itself gives. `groups`: N.
    """

    metrics: tuple[str, ...]
    whole: Numbers
    prefixes: Sequence[Numbers]
    correct: Flags
    raw: Numbers
    groups: Sequence[str | None]

    def __len__(self) -> int:
        return len(self.correct)

    @property
    def is_single(self) -> bool:
        """Whether rows are judged by one metric, to which nothing need be fitted."""
        return len(self.metrics) == 1

    def of_group(self, group: str) -> Flags:
        """(N,): which rows are of this group."""
        return np.array([each == group for each in self.groups])

    def names_of_groups(self) -> list[str]:
        """Every group once, sorted."""
        return sorted({group for group in self.groups if group is not None})

    def require_enough(self) -> None:
        """Refuse rows of which nothing can be said.

        Raises:
            DataError: too few, only right or only wrong answers, or numbers that are none.
        """
        if len(self) < FEWEST:
            raise DataError(f"found {len(self)} rows with a truth: expected at least {FEWEST}")
        if not np.isfinite(self.whole).all():
            row = int(np.argmin(np.isfinite(self.whole).all(axis=1)))
            raise DataError(f"answer {row} has a metric that is not finite: the ensemble is broken")
        if self.correct.all() or not self.correct.any():
            what = "right" if self.correct.all() else "wrong"
            raise DataError(
                f"all {len(self)} answers are {what}: expected right and wrong ones, or there is nothing to tell apart"
            )
