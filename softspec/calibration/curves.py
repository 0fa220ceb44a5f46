"""Monotone curves from a score to the probability of being right, fitted by scikit-learn.

In: scores, of which higher is less certain, and whether each answer was right. Out: points of a curve that never rises.
Knows no metrics beside their scale, and no thresholds.
"""

from collections.abc import Callable
from typing import Literal

import numpy as np
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression

from softspec.artefact.calibration import Method
from softspec.calibration.outcomes import Flags, Numbers

Scale = Literal["nats", "share", "logit"]
"""What a score is: nats from 0, a share from 0 to 1, or the log-odds of being wrong."""
Curve = tuple[tuple[float, float], ...]
NUM_POINTS = 65
"""Of a smooth curve; straight lines between them are within 0.001 of it."""
SMALLEST = 1e-6
WEAK = 1e4
"""Of the penalty on weights, inverted: enough to keep them finite where right and wrong answers do not overlap."""
Features = Callable[[Numbers, Scale], Numbers]


def fit_curve(scores: Numbers, correct: Flags, method: Method, scale: Scale) -> Curve:
    """The curve of P(correct) over scores (N,).

    Confidences are kept 1 / (N + 2) away from 0 and 1: no number of rows makes an answer certain. A score that says the
    opposite of what it should gives a flat curve, at the share of right answers.
    """
    if method == "isotonic":
        model = IsotonicRegression(increasing=False, out_of_bounds="clip").fit(scores, correct)
        points, heights = model.X_thresholds_, model.y_thresholds_
    else:
        points = _grid(scores)
        heights = _logistic(scores, correct, points, _platt if method == "platt" else _beta, scale)
    edge = 1 / (len(scores) + 2)
    return simplified(points, np.minimum.accumulate(np.clip(heights, edge, 1 - edge)))


def simplified(points: Numbers, heights: Numbers) -> Curve:
    """The points of a curve without those on a level line, which say nothing."""
    last = len(points) - 1
    kept = [
        place
        for place in range(len(points))
        if place in (0, last) or not heights[place - 1] == heights[place] == heights[place + 1]
    ]
    return tuple((float(points[place]), float(heights[place])) for place in kept)


def _grid(scores: Numbers) -> Numbers:
    """Scores between which a smooth curve is drawn as straight lines: most where most rows are, and evenly beside."""
    low, high = float(scores.min()), float(scores.max())
    quantiles = np.quantile(scores, np.linspace(0, 1, NUM_POINTS))
    return np.unique(np.concatenate([quantiles, np.linspace(low, high, NUM_POINTS)]))


def _platt(scores: Numbers, scale: Scale) -> Numbers:
    return -scores[:, None]


def _beta(scores: Numbers, scale: Scale) -> Numbers:
    """Log s and -log(1 - s) of the score as a certainty s from 0 to 1 (Kull et al. 2017): (N, 2)."""
    sure = {"nats": np.exp(-scores), "share": 1 - scores, "logit": 1 / (1 + np.exp(scores))}[scale]
    sure = np.clip(sure, SMALLEST, 1 - SMALLEST)
    return np.stack([np.log(sure), -np.log1p(-sure)], axis=1)


def _logistic(scores: Numbers, correct: Flags, points: Numbers, features: Features, scale: Scale) -> Numbers:
    """P(correct) at points by a logistic regression in which every feature may only raise it."""
    columns, at = features(scores, scale), features(points, scale)
    centre, spread = columns.mean(axis=0), columns.std(axis=0)
    kept = np.flatnonzero(spread > SMALLEST)
    while len(kept):
        fitted, asked = ((each - centre)[:, kept] / spread[kept] for each in (columns, at))
        model = LogisticRegression(C=WEAK).fit(fitted, correct)
        if (model.coef_[0] >= 0).all():
            return model.predict_proba(asked)[:, 1]
        kept = kept[model.coef_[0] >= 0]
    return np.full(len(points), correct.mean())
