"""How far the confidences that are served have moved from those of the calibration.

In: confidences in their turn, and how they were spread at the time of calibration. Out: the largest difference between
the two distributions. Knows no metrics and no engine.
"""

from bisect import bisect_left
from collections import deque
from itertools import accumulate

from softspec.artefact.calibration import Calibration, Reference

WINDOW = 1000
"""So many of the last confidences count."""
FEWEST = 100
"""Of fewer nothing is told: chance alone moves them by 1.36 / sqrt(count), here 0.14, one time in twenty."""


class Drift:
    """The Kolmogorov-Smirnov distance of the last confidences from the calibration's: 0 is alike, 1 is disjoint."""

    def __init__(self, reference: Reference) -> None:
        self._reference = reference
        self._places: deque[int] = deque(maxlen=WINDOW)
        self._counts = [0] * (len(reference.values) + 1)

    def add(self, confidence: float) -> float | None:
        """The distance with this confidence; None while there are too few."""
        if len(self._places) == WINDOW:
            self._counts[self._places[0]] -= 1
        place = bisect_left(self._reference.values, confidence)
        self._places.append(place)
        self._counts[place] += 1
        if (count := len(self._places)) < FEWEST:
            return None
        below = accumulate(self._counts[:-1])
        return max(
            abs(each / count - share) for each, share in zip(below, self._reference.shares, strict=True)
        )


class Drifts:
    """One window for each model and kind of calibration, begun anew where the calibration is another."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, str], tuple[Calibration, Drift]] = {}

    def add(self, model: str, calibration: Calibration, confidence: float) -> float | None:
        """The distance of a model's confidences; None where nothing can be told."""
        if calibration.reference is None:
            return None
        key = model, calibration.judged
        if key not in self._known or self._known[key][0] != calibration:
            self._known[key] = calibration, Drift(calibration.reference)
        return self._known[key][1].add(confidence)
