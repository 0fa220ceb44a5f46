"""How good a confidence is on rows that it was not fitted to, beside the probability that the mixture gives itself.

In: outcomes, and the method. Out: calibration error, Brier score and negative log-likelihood with intervals, and
reliability. Knows no thresholds.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from scipy.stats import beta
from sklearn.model_selection import StratifiedKFold

from softspec.artefact.calibration import Method
from softspec.calibration.model import fit_confidence
from softspec.calibration.outcomes import Flags, Numbers, Outcomes
from softspec.maths.scoring import expected_calibration_error

NUM_FOLDS = 5
NUM_RESAMPLES = 200
NUM_BINS = 10
LEVEL = 0.95
_EDGE = 1e-6


@dataclass(frozen=True)
class Scored:
    """A score with its bootstrap interval, over `n` rows."""

    value: float
    low: float
    high: float
    n: int


def out_of_fold(outcomes: Outcomes, method: Method) -> Numbers | None:
    """(N,): each row's confidence, fitted to the other folds; None if there are fewer than two of right or wrong."""
    folds = min(NUM_FOLDS, int(outcomes.correct.sum()), int((~outcomes.correct).sum()))
    if folds < 2:
        return None
    found = np.empty(len(outcomes))
    splits = StratifiedKFold(folds, shuffle=True, random_state=0).split(outcomes.whole, outcomes.correct)
    for fitted, held in splits:
        rows = np.zeros(len(outcomes), dtype=bool)
        rows[fitted] = True
        found[held] = fit_confidence(outcomes, rows, method).of(outcomes.whole[held])
    return found


def report(outcomes: Outcomes, method: Method) -> dict[str, Any]:
    """The scores before and after, as JSON; the reason where there are none."""
    after = out_of_fold(outcomes, method)
    if after is None:
        return {"reason": "fewer than two right or two wrong answers: nothing can be held out"}
    scores = {
        name: {
            "before": asdict(_scored(measure, outcomes.raw, outcomes.correct)),
            "after": asdict(_scored(measure, after, outcomes.correct)),
        }
        for name, measure in MEASURES.items()
    }
    return {
        "estimator": f"{NUM_FOLDS}-fold cross-fit, centred bootstrap {LEVEL:.0%} interval",
        **scores,
        "reliability": reliability(after, outcomes.correct),
    }


def reliability(confidence: Numbers, correct: Flags) -> list[dict[str, float]]:
    """Rows in bins of like confidence: the mean confidence, the share that is right, and its exact interval."""
    bins = np.array_split(np.argsort(confidence, kind="stable"), min(NUM_BINS, len(confidence)))
    return [
        {
            "confidence": float(confidence[rows].mean()),
            "correct": float(correct[rows].mean()),
            **dict(zip(("low", "high"), share_interval(int(correct[rows].sum()), len(rows)), strict=True)),
            "n": len(rows),
        }
        for rows in bins
    ]


def share_interval(count: int, total: int) -> tuple[float, float]:
    """The exact interval of a share (Clopper and Pearson 1934)."""
    tail = (1 - LEVEL) / 2
    low = beta.ppf(tail, count, total - count + 1) if count else 0.0
    high = beta.ppf(1 - tail, count + 1, total - count) if count < total else 1.0
    return float(low), float(high)


def _ece(confidence: Numbers, correct: Flags) -> float:
    return float(expected_calibration_error(torch.from_numpy(confidence), torch.from_numpy(correct)))


def _brier(confidence: Numbers, correct: Flags) -> float:
    return float(((confidence - correct) ** 2).mean())


def _nll(confidence: Numbers, correct: Flags) -> float:
    given = np.where(correct, confidence, 1 - confidence)
    return float(-np.log(np.clip(given, _EDGE, 1)).mean())


Measure = Callable[[Numbers, Flags], float]
MEASURES: dict[str, Measure] = {"ece": _ece, "brier": _brier, "nll": _nll}


def _scored(measure: Measure, confidence: Numbers, correct: Flags) -> Scored:
    draw = np.random.default_rng(0)
    count = len(correct)
    values = [
        measure(confidence[rows], correct[rows])
        for rows in (draw.integers(0, count, count) for _ in range(NUM_RESAMPLES))
    ]
    # Resampled calibration errors are larger than the one they are about: only their spread is used.
    value, middle = measure(confidence, correct), float(np.mean(values))
    low, high = value + np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]) - middle
    return Scored(value, max(float(low), 0.0), float(high), count)
