"""What `ensemble.json` says of calibration, and how a confidence and a threshold are read off it.

In: the metrics of an answer or a decision, or a target. Out: the probability that it is right, or the threshold that
was certified for the target. Plain Python: who serves needs no statistics. Fitting is for `softspec.calibration`.
"""

import json
import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from softspec.errors import ConfigError
from softspec.maths.answer import DECISION_METRICS, METRICS

Judged = Literal["answers", "decisions"]
"""What was judged: answers in many tokens, at every prefix; or choices between known options, once."""
Method = Literal["isotonic", "platt", "beta"]
CONFIDENCE = "confidence"
"""The metric of which less is worse: what lies below its threshold is withheld."""
METRICS_OF: Mapping[Judged, Sequence[str]] = {"answers": METRICS, "decisions": DECISION_METRICS}
Share = Annotated[float, Field(ge=0, le=1)]
OpenShare = Annotated[float, Field(gt=0, lt=1)]
Finite = Annotated[float, Field(allow_inf_nan=False)]


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Target(_Frozen):
    """What a threshold is to do: at most this error rate among what is answered, or at least this share answered.

    `group`: for rows of this group, where groups were calibrated apart.
    """

    target_error: OpenShare | None = None
    target_coverage: OpenShare | None = None
    group: Annotated[str, Field(min_length=1)] | None = None

    @model_validator(mode="after")
    def _is_one(self) -> "Target":
        if (self.target_error is None) == (self.target_coverage is None):
            raise ValueError('expected either {"target_error": SHARE} or {"target_coverage": SHARE}')
        return self

    @property
    def asks(self) -> "Target":
        """The target alone, whatever more is known of it."""
        return Target(target_error=self.target_error, target_coverage=self.target_coverage, group=self.group)

    def __str__(self) -> str:
        return json.dumps(self.asks.model_dump(exclude_none=True), ensure_ascii=False)


class Threshold(Target):
    """A threshold and what was certified of it.

    With probability at least 1 - `delta` over the rows of calibration the target holds for rows like them. `coverage`
    is the share of `num_rows` rows that was answered at this threshold, `error` the share of these that was wrong.
    """

    threshold: Finite
    delta: OpenShare
    coverage: Share
    error: Share | None
    num_rows: int = Field(ge=1)


class Input(_Frozen):
    """One metric of several: its value, held between `low` and `high`, counts `weight` times in the score."""

    metric: str
    weight: Finite
    low: Finite
    high: Finite


class Reference(_Frozen):
    """How confidences were spread at the time of calibration: `shares` of them were at most `values`."""

    values: tuple[Share, ...] = Field(min_length=1)
    shares: tuple[Share, ...]

    @model_validator(mode="after")
    def _is_distribution(self) -> "Reference":
        if len(self.shares) != len(self.values):
            raise ValueError(f"'reference' has {len(self.values)} values and {len(self.shares)} shares")
        if any(a >= b for a, b in pairwise(self.values)) or any(a > b for a, b in pairwise(self.shares)):
            raise ValueError("'reference' must rise, values and shares alike")
        return self


class Calibration(_Frozen):
    """A monotone curve from a score to P(correct), and thresholds for targets.

    The score is the metric itself, or with `inputs` their weighted sum, and `metric` is then `confidence`: thresholds
    are on it. `curve` are points (score, confidence) with straight lines between them; outside it is constant. Answers
    were judged at every prefix of at least `min_tokens` tokens. `settings`: how the ensemble was asked. `also`: the
    calibration of the other kind, if there is one.
    """

    judged: Judged
    metric: str
    method: Method
    curve: tuple[tuple[Finite, Share], ...] = Field(min_length=1)
    inputs: tuple[Input, ...] = ()
    thresholds: tuple[Threshold, ...] = ()
    weights_rule: Literal["prefix_posterior", "fixed"] = "prefix_posterior"
    min_tokens: int = Field(default=1, ge=1)
    num_rows: int | None = Field(default=None, ge=1)
    settings: dict[str, Any] = Field(default_factory=dict)
    fit: dict[str, Any] = Field(default_factory=dict)
    reference: Reference | None = None
    also: "Calibration | None" = None

    @model_validator(mode="after")
    def _fits_together(self) -> "Calibration":
        known = METRICS_OF[self.judged]
        found = [each.metric for each in self.inputs] or [self.metric]
        if unknown := [metric for metric in found if metric not in known]:
            raise ValueError(f"metric is '{unknown[0]}': of {self.judged} expected one of {', '.join(known)}")
        if self.inputs and self.metric != CONFIDENCE:
            raise ValueError(f"metric is '{self.metric}': of several inputs expected '{CONFIDENCE}'")
        if any(a[0] >= b[0] or a[1] < b[1] for a, b in pairwise(self.curve)):
            raise ValueError("'curve' must have rising scores, and confidences that never rise")
        if self.also is not None and (self.also.judged == self.judged or self.also.also is not None):
            raise ValueError("'also' must be of the other kind, and have none of its own")
        return self

    def of(self, judged: Judged) -> "Calibration | None":
        """The calibration of this kind, if there is one."""
        return self if self.judged == judged else self.also

    @property
    def metrics(self) -> tuple[str, ...]:
        """The metrics of which a confidence is made."""
        return tuple(each.metric for each in self.inputs) or (self.metric,)

    def score(self, metrics: Mapping[str, float]) -> float:
        """The number that the curve is about; higher is less certain."""
        if not self.inputs:
            return metrics[self.metric]
        return math.fsum(
            each.weight * min(max(metrics[each.metric], each.low), each.high) for each in self.inputs
        )

    def confidence(self, metrics: Mapping[str, float]) -> float:
        """The probability that an answer with these metrics is right, from 0 to 1; infinite metrics are the ends."""
        return read_curve(self.curve, self.score(metrics))

    def threshold_for(self, target: Target) -> Threshold:
        """The threshold that was certified for a target.

        Raises:
            ConfigError: none was; the message has those that were.
        """
        for found in self.thresholds:
            if found.asks == target.asks:
                return found
        known = ", ".join(map(str, self.thresholds))
        raise ConfigError(
            f"no threshold was certified for {target}: "
            + (f"expected one of {known}" if known else "none was for any target; calibrate on more rows")
        )


def calibration_of(calibration: Calibration | None, judged: Judged) -> Calibration | None:
    """What an ensemble knows of answers, or of decisions."""
    return None if calibration is None else calibration.of(judged)


def read_curve(curve: Sequence[tuple[float, float]], score: float) -> float:
    """The curve at a score: straight between its points, constant outside of them."""
    place = bisect_right(curve, score, key=lambda point: point[0])
    if place in (0, len(curve)):
        return curve[0 if place == 0 else -1][1]
    (left, above), (right, below) = curve[place - 1], curve[place]
    return above + (below - above) * ((score - left) / (right - left))
