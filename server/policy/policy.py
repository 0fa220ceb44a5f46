"""What to do with an uncertain answer: the policy, and its decision on one value of its metric.

In: settings, and the value of a metric. Out: answer or abstain, with a reason. Knows no HTTP, no engine and no tokens.
"""

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

from softspec.errors import ConfigError
from softspec.maths.answer import METRICS

Action = Literal["answer", "abstain", "route"]
DEFAULT_METRIC = "mutual_information"


@dataclass(frozen=True)
class Policy:
    """A rule: `action` happens at the first prefix of an answer whose `metric` is greater than `threshold`.

    `metric` is in nats, a share for the disagreements. Prefixes are judged from `min_tokens` tokens on.
    """

    action: Action = "answer"
    metric: str = DEFAULT_METRIC
    threshold: float | None = None
    min_tokens: int = 1

    def __post_init__(self) -> None:
        if self.metric not in METRICS:
            raise ConfigError(f"policy metric is '{self.metric}': expected one of {', '.join(METRICS)}")
        if self.action == "route":
            raise ConfigError(
                "policy action 'route' is not available: no upstream is configured; use answer or abstain"
            )
        if self.action not in ("answer", "abstain"):
            raise ConfigError(f"policy action is '{self.action}': expected answer, abstain or route")
        if self.threshold is None and self.action != "answer":
            raise ConfigError(f"policy action '{self.action}' needs a threshold: give a number of at least 0")
        if self.threshold is not None and not (math.isfinite(self.threshold) and self.threshold >= 0):
            raise ConfigError(f"policy threshold is {self.threshold}: expected a finite number of at least 0")
        if self.min_tokens < 1:
            raise ConfigError(f"policy min_tokens is {self.min_tokens}: expected a number of at least 1")

    def changed(
        self,
        action: Action | None = None,
        metric: str | None = None,
        threshold: float | None = None,
        min_tokens: int | None = None,
    ) -> "Policy":
        """This policy with the fields that somebody gave; None stands for those that were not given.

        Raises:
            ConfigError: the result cannot be followed, or a field would have no effect.
        """
        given = {"metric": metric, "threshold": threshold, "min_tokens": min_tokens}
        rule: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        if (action or self.action) == "answer":
            if rule:
                Policy(
                    **{"action": "abstain", "threshold": 0.0, **rule}
                )  # what is wrong in itself is said first
                raise ConfigError(
                    f"policy {' and '.join(rule)} given for action 'answer', which withholds nothing: give action "
                    "'abstain' too, or nothing"
                )
            return Policy("answer")
        whole: dict[str, Any] = {**asdict(self), **rule, "action": action or self.action}
        if whole["metric"] != self.metric and threshold is None:
            whole["threshold"] = None  # a threshold belongs to its metric
        return Policy(**whole)

    def loosened_by(self, other: "Policy") -> str | None:
        """The field by which `other` may send what this policy withholds; None when it withholds at least as much."""
        assert self.threshold is not None
        if other.action != self.action or other.threshold is None:
            return "action"
        if other.metric != self.metric:
            return "metric"
        if other.threshold > self.threshold:
            return "threshold"
        return "min_tokens" if other.min_tokens > self.min_tokens else None

    def decide(self, value: float, num_tokens: int) -> "Decision":
        """The decision on a prefix of so many tokens whose metric has this value."""
        if self.action == "answer" or self.threshold is None or num_tokens < self.min_tokens:
            return ANSWER
        if not value > self.threshold:
            return ANSWER
        comparison = _comparison(value, self.threshold)
        return Decision(self.action, f"{self.metric} {comparison} at token {num_tokens}", num_tokens)


@dataclass(frozen=True)
class Decision:
    """What a policy decided; `reason` and `decided_at` (which token, from 1) are None when it had no objection."""

    action: Action
    reason: str | None
    decided_at: int | None


ANSWER = Decision("answer", None, None)


def _comparison(value: float, threshold: float) -> str:
    """Text like `0.41 > 0.40`, with enough decimals to be true, and to show a short threshold as it was given."""
    true = [decimals for decimals in range(2, 7) if round(value, decimals) > round(threshold, decimals)]
    exact = [decimals for decimals in true if round(threshold, decimals) == threshold]
    for decimals in (*exact[:1], *true[:1]):
        return f"{value:.{decimals}f} > {threshold:.{decimals}f}"
    return f"{value!r} > {threshold!r}"
