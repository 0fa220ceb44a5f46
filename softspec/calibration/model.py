"""A confidence fitted to outcomes: the score of one metric or several, and its curve.

In: outcomes. Out: the inputs and the curve of a calibration, and the scores of rows by it. Knows no thresholds.
"""

import math
from dataclasses import dataclass

import numpy as np
from sklearn.linear_model import LogisticRegression

from softspec.artefact.calibration import Input, Method
from softspec.calibration.curves import Curve, Scale, fit_curve
from softspec.calibration.outcomes import Flags, Numbers, Outcomes
from softspec.errors import DataError


@dataclass(frozen=True)
class Confidence:
    """A fitted map from M metrics to P(correct); of one metric `inputs` is empty."""

    inputs: tuple[Input, ...]
    curve: Curve

    def scores(self, metrics: Numbers) -> Numbers:
        """(N,) scores of (N, M) metrics; higher is less certain."""
        if not self.inputs:
            return metrics[:, 0]
        low, high, weights = (
            np.array([getattr(each, name) for each in self.inputs]) for name in ("low", "high", "weight")
        )
        return np.array([math.fsum(row) for row in np.clip(metrics, low, high) * weights])

    def of(self, metrics: Numbers) -> Numbers:
        """(N,) confidences of (N, M) metrics, to the last digit those that `Calibration.confidence` reads."""
        points, heights = np.array(self.curve).T
        scores = np.clip(self.scores(metrics), points[0], points[-1])
        if len(points) == 1:
            return np.full(len(scores), heights[0])
        left = np.clip(np.searchsorted(points, scores, side="right") - 1, 0, len(points) - 2)
        slope = (scores - points[left]) / (points[left + 1] - points[left])
        return heights[left] + (heights[left + 1] - heights[left]) * slope

    def doubts(self, outcomes: Outcomes) -> Numbers:
        """(N,): the most doubtful prefix of each row, as its policy compares it; -inf where none is judged.

        Of one metric its largest value; of several the smallest confidence, negated.
        """
        found = np.full(len(outcomes), -np.inf)
        lengths = np.array([len(rows) for rows in outcomes.prefixes])
        if judged := [rows for rows in outcomes.prefixes if len(rows)]:
            every = np.concatenate(judged)
            doubts = -self.of(every) if self.inputs else self.scores(every)
            starts = np.append(0, np.cumsum(lengths[lengths > 0])[:-1])
            found[lengths > 0] = np.maximum.reduceat(doubts, starts)
        return found


def fit_confidence(outcomes: Outcomes, rows: Flags, method: Method) -> Confidence:
    """The confidence that these rows teach.

    Raises:
        DataError: all of them are right, or all wrong.
    """
    whole, correct = outcomes.whole[rows], outcomes.correct[rows]
    if correct.all() or not correct.any():
        raise DataError(
            f"of {len(correct)} rows to fit to all are {'right' if correct.all() else 'wrong'}: expected both; "
            "give more rows"
        )
    if outcomes.is_single:
        scale: Scale = "share" if "disagreement" in outcomes.metrics[0] else "nats"
        return Confidence((), fit_curve(whole[:, 0], correct, method, scale))
    inputs = _fit_inputs(outcomes.metrics, whole, correct)
    scores = Confidence(inputs, ()).scores(whole)
    return Confidence(inputs, fit_curve(scores, correct, method, "logit"))


def _fit_inputs(metrics: tuple[str, ...], whole: Numbers, correct: Flags) -> tuple[Input, ...]:
    """Weights of the metrics in the log-odds of being wrong, by logistic regression on metrics of unit variance."""
    spread = whole.std(axis=0)
    spread[spread == 0] = 1
    model = LogisticRegression().fit((whole - whole.mean(axis=0)) / spread, ~correct)
    weights, low, high = model.coef_[0] / spread, whole.min(axis=0), whole.max(axis=0)
    return tuple(
        Input(metric=name, weight=float(weights[m]), low=float(low[m]), high=float(high[m]))
        for m, name in enumerate(metrics)
    )
