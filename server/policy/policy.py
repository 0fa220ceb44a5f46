"""What to do with an uncertain answer: the policy, and its decision on one value of its metric.

In: settings, and the value of a metric. Out: answer, abstain or route, with a reason. Knows no HTTP, no engine, no
tokens and none of the upstreams.
"""

import math
import operator
from dataclasses import dataclass, replace
from typing import Any, Literal

from softspec.artefact.calibration import CONFIDENCE, Calibration, Target
from softspec.artefact.validation import as_key
from softspec.errors import ConfigError, FieldError
from softspec.maths.answer import METRICS, OF_DECISION

Action = Literal["answer", "abstain", "route"]
OnFailure = Literal["answer", "abstain", "error"]
DEFAULT_METRIC = "mutual_information"
CALIBRATED = "calibrated"
"""In place of a metric: the one of the ensemble's calibration, where the threshold is a target."""
HELD = {"answer": 0, "abstain": 0, "route": 16}
"""Action -> tokens of a stream that are held back where nobody says how many."""
MOST_HELD = 65_536
"""What is held lies in the server's memory until it is sent: a few kilobytes for every token, with all its numbers."""
_RULE = ("metric", "threshold", "min_tokens", "hold_tokens")
EFFECTIVE: dict[str, tuple[str, ...]] = {
    "answer": (),
    "abstain": _RULE,
    "route": (*_RULE, "upstream", "on_failure"),
}
"""Action -> the fields beside it that have an effect."""


@dataclass(frozen=True)
class Policy:
    """A rule: `action` happens at the first prefix of an answer whose `metric` crosses `threshold`.

    `metric` is in nats, a share for the disagreements, a probability for `confidence`. Prefixes are judged from
    `min_tokens` tokens on; of a stream the last `held` tokens are not sent yet. To route is to ask `upstream`, None
    being the only one that there is, and where that fails `on_failure` happens. A target in place of the threshold is
    for `resolved`, which notes the ensemble's `calibration` where the policy follows it.
    """

    action: Action = "answer"
    metric: str = DEFAULT_METRIC
    threshold: float | Target | None = None
    min_tokens: int = 1
    hold_tokens: int | None = None
    upstream: str | None = None
    on_failure: OnFailure = "abstain"
    calibration: Calibration | None = None

    def __post_init__(self) -> None:
        if self.action not in EFFECTIVE:
            raise ConfigError(f"policy action is '{as_key(self.action)}': expected answer, abstain or route")
        if self.metric not in (*METRICS, CONFIDENCE) and not self._takes_calibrated_metric:
            expected = ", ".join((*METRICS, CONFIDENCE))
            raise ConfigError(f"policy metric is '{as_key(self.metric)}': expected one of {expected}")
        self._check_threshold()
        if self.min_tokens < 1:
            raise ConfigError(f"policy min_tokens is {self.min_tokens}: expected a number of at least 1")
        if self.hold_tokens is not None and not 0 <= self.hold_tokens <= MOST_HELD:
            raise ConfigError(
                f"policy hold_tokens is {self.hold_tokens}: expected a number from 0 to {MOST_HELD}"
            )
        if self.on_failure not in ("answer", "abstain", "error"):
            raise ConfigError(
                f"policy on_failure is '{as_key(self.on_failure)}': expected answer, abstain or error"
            )

    def _check_threshold(self) -> None:
        if self.threshold is None:
            if self.action != "answer":
                raise ConfigError(
                    f"policy action '{self.action}' needs a threshold: give a number of at least 0"
                )
        elif isinstance(self.threshold, Target):
            return
        elif not (math.isfinite(self.threshold) and self.threshold >= 0):
            raise ConfigError(f"policy threshold is {self.threshold}: expected a finite number of at least 0")
        elif self.metric == CONFIDENCE and self.threshold > 1:
            raise ConfigError(
                f"policy threshold is {self.threshold}: expected a probability from 0 to 1, as the metric is "
                f"'{CONFIDENCE}'"
            )

    @property
    def _takes_calibrated_metric(self) -> bool:
        return self.metric == CALIBRATED and isinstance(self.threshold, Target)

    @property
    def needs_calibration(self) -> bool:
        """Whether only a calibrated ensemble can follow it."""
        return self.action != "answer" and (isinstance(self.threshold, Target) or self.metric == CONFIDENCE)

    def resolved(self, calibration: Calibration | None) -> "Policy":
        """The policy as an ensemble with this calibration follows it: with a number for a threshold.

        Raises:
            FieldError: it needs a calibration, and there is none, or none for this target, metric or `min_tokens`.
        """
        if not self.needs_calibration:
            return self
        target = self.threshold if isinstance(self.threshold, Target) else None
        if calibration is None:
            field, what = (
                ("threshold", f"threshold {target}") if target else ("metric", f"metric '{self.metric}'")
            )
            raise FieldError(
                field,
                f"policy {what} needs an ensemble that was calibrated for what is asked: run 'softspec calibrate', or "
                "choose another",
            )
        if target is None:
            return replace(self, calibration=calibration)
        self._require_calibrated_for(target, calibration)
        try:
            found = calibration.threshold_for(target)
        except ConfigError as error:
            raise FieldError("threshold", f"policy threshold: {error}") from error
        return replace(self, metric=calibration.metric, threshold=found.threshold, calibration=calibration)

    def _require_calibrated_for(self, target: Target, calibration: Calibration) -> None:
        """Refuse a target whose threshold was certified for another metric, or for other prefixes."""
        is_decision = calibration.judged == "decisions"
        metric = OF_DECISION.get(self.metric, self.metric) if is_decision else self.metric
        if metric not in (CALIBRATED, calibration.metric):
            raise FieldError(
                "metric",
                f"policy metric is '{self.metric}', but {target} was calibrated on '{calibration.metric}': leave the "
                "metric out",
            )
        if not is_decision and self.min_tokens != calibration.min_tokens:
            raise FieldError(
                "min_tokens",
                f"policy min_tokens is {self.min_tokens}, but {target} was calibrated with {calibration.min_tokens}: "
                f"give min_tokens {calibration.min_tokens}",
            )

    @property
    def held(self) -> int:
        """How many tokens of a stream are held back, so that they can still be replaced."""
        return HELD[self.action] if self.hold_tokens is None else self.hold_tokens

    def changed(self, **given: Any) -> "Policy":
        """This policy with the fields that somebody gave; None stands for those that were not given.

        What the new action has no use for is dropped, and so is a threshold whose metric was changed.

        Raises:
            ConfigError: the result cannot be followed, or a field that was given would have no effect.
        """
        given = {name: value for name, value in given.items() if value is not None}
        action = given.pop("action", self.action)
        idle = [name for name in given if name not in EFFECTIVE.get(action, given)]
        if idle:
            Policy(
                **{"action": "abstain", "threshold": 0.0, **given}
            )  # what is wrong in itself is said first
            raise ConfigError(f"policy {' and '.join(idle)} given for action '{action}', {_use_of(action)}")
        kept = {name: getattr(self, name) for name in EFFECTIVE.get(action, ())}
        if isinstance(given.get("threshold"), Target):
            kept["metric"] = CALIBRATED
        elif given.get("metric", self.metric) != self.metric:
            kept.pop("threshold", None)
        elif self._takes_calibrated_metric and "threshold" in given:
            kept.pop("metric")
        return Policy(**{**kept, **given, "action": action})

    def crosses(self, value: float) -> bool:
        """Whether the policy acts at this value of its metric: above the threshold, or below it for `confidence`."""
        assert isinstance(self.threshold, int | float), "a policy is resolved before it judges"
        return value < self.threshold if self.metric == CONFIDENCE else value > self.threshold

    def loosened_by(self, other: "Policy") -> str | None:
        """The field by which `other` may send what this policy withholds, or send it elsewhere; None if by none.

        To abstain is tighter than to route: it withholds the same and asks nobody else. To hold fewer tokens is looser,
        as those sent before the crossing are out.
        """
        if not isinstance(other.threshold, int | float) or other.action not in (self.action, "abstain"):
            return "action"
        if other.metric != self.metric:
            return "metric"
        if self.crosses(other.threshold):
            return "threshold"
        if other.min_tokens > self.min_tokens:
            return "min_tokens"
        if other.held < self.held:
            return "hold_tokens"
        if other.action == "route" and other.upstream != self.upstream:
            return "upstream"
        is_sent = other.action == "route" and other.on_failure == "answer"
        return "on_failure" if is_sent and self.on_failure != "answer" else None

    def decide(self, value: float, num_tokens: int) -> "Decision":
        """The decision on a prefix of so many tokens whose metric has this value."""
        crossing = None if num_tokens < self.min_tokens else self.crossing(value)
        return Decision(self.action, f"{crossing} at token {num_tokens}", num_tokens) if crossing else ANSWER

    def crossing(self, value: float) -> str | None:
        """A value of the metric at which the policy acts, in words; None where it does not."""
        if self.threshold is None or not self.crosses(value):
            return None
        assert not isinstance(self.threshold, Target)
        return f"{self.metric} {_comparison(value, self.threshold)}"


def _use_of(action: str) -> str:
    """Why fields were refused for an action, and what to do."""
    if action == "answer":
        return "which withholds nothing: give action 'abstain' too, or nothing"
    return "which asks nobody else: give action 'route' too, or leave it out"


@dataclass(frozen=True)
class Decision:
    """What a policy decided; `reason` and `decided_at` (which token, from 1) are None when it had no objection.

    `upstream` is the one that answered in place of the ensemble, if one did.
    """

    action: Action
    reason: str | None
    decided_at: int | None
    upstream: str | None = None

    @property
    def objection(self) -> str | None:
        """The value that crossed the threshold; what else `reason` says may be in an upstream's words."""
        return None if self.reason is None else self.reason.partition("; ")[0]


ANSWER = Decision("answer", None, None)


def _comparison(value: float, threshold: float) -> str:
    """Text like `0.41 > 0.40`, with enough decimals to be true, and to show a short threshold as it was given."""
    sign, is_true = (">", operator.gt) if value > threshold else ("<", operator.lt)
    true = [
        decimals for decimals in range(2, 7) if is_true(round(value, decimals), round(threshold, decimals))
    ]
    exact = [decimals for decimals in true if round(threshold, decimals) == threshold]
    for decimals in (*exact[:1], *true[:1]):
        return f"{value:.{decimals}f} {sign} {threshold:.{decimals}f}"
    return f"{value!r} {sign} {threshold!r}"
