"""What to do with an uncertain answer: the policy, its decision, and the running value of its metric.

In: the uncertainty of tokens. Out: answer or abstain, with a reason. Knows no HTTP and no engine.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from softspec.artefact.manifest import WeightsRule
from softspec.engine.trace import ChoiceTrace
from softspec.errors import ConfigError
from softspec.maths.answer import METRICS, TokenUncertainty, summarise

Action = Literal["answer", "abstain", "route"]
DEFAULT_METRIC = "mutual_information"


@dataclass(frozen=True)
class Policy:
    """A rule: `action` happens when `metric` (nats; a share for disagreements) is greater than `threshold`."""

    action: Action = "answer"
    metric: str = DEFAULT_METRIC
    threshold: float | None = None

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

    def decide(self, value: float) -> "Decision":
        """The decision for one value of the metric."""
        if self.action == "answer" or self.threshold is None or not value > self.threshold:
            return Decision("answer", None)
        return Decision(self.action, f"{self.metric} {_comparison(value, self.threshold)}")


@dataclass(frozen=True)
class Decision:
    """What a policy decided; `reason` is None when it had no objection."""

    action: Action
    reason: str | None


def _comparison(value: float, threshold: float) -> str:
    """Text like `0.41 > 0.40`, with enough decimals to be true, and to show a short threshold as it was given."""
    true = [decimals for decimals in range(2, 7) if round(value, decimals) > round(threshold, decimals)]
    exact = [decimals for decimals in true if round(threshold, decimals) == threshold]
    for decimals in (*exact[:1], *true[:1]):
        return f"{value:.{decimals}f} > {threshold:.{decimals}f}"
    return f"{value!r} > {threshold!r}"


class RunningMetric:
    """One metric of a growing answer, O(K) per token; after each it equals that field of `summarise`."""

    def __init__(self, metric: str, log_weights: tuple[float, ...], weights_rule: WeightsRule) -> None:
        self._metric = metric
        self._log_weights = log_weights
        self._weights_rule = weights_rule
        self._num_tokens = 0
        self._total = 0.0
        self._member_log_probs = (0.0,) * len(log_weights)

    def add(self, token: TokenUncertainty) -> float:
        """The metric of the answer that ends with this token."""
        self._num_tokens += 1
        if self._metric == "mutual_information":
            return self._information(token)
        number: float = getattr(token, self._metric.removeprefix("max_"))
        if self._metric.startswith("max_"):
            self._total = max(self._total, number)
            return self._total
        self._total += number
        return self._total / self._num_tokens

    def _information(self, token: TokenUncertainty) -> float:
        if self._weights_rule == "fixed":
            self._total += summarise([token], self._log_weights, "fixed").mutual_information
            return self._total
        sums = zip(self._member_log_probs, token.member_log_probs, strict=True)
        self._member_log_probs = tuple(before + now for before, now in sums)
        # The weights after the answer depend on the members' sums alone, so one token stands for all.
        whole = replace(token, member_log_probs=self._member_log_probs)
        return summarise([whole], self._log_weights, "prefix_posterior").mutual_information


class RunningDecision:
    """A policy applied to a growing answer. Once it objects, the answer ends with the token that did it.

    Every token is judged in its turn, so the outcome does not depend on how tokens are grouped into chunks.
    """

    def __init__(self, policy: Policy, trace: ChoiceTrace) -> None:
        self._policy = policy
        self._trace = trace
        self._metric = RunningMetric(policy.metric, trace.log_weights, trace.weights_rule)
        self.num_tokens = 0
        self.decision = Decision("answer", None)

    def catch_up(self) -> Sequence[TokenUncertainty]:
        """Judge and return the tokens since the last call, up to the one that ends the answer."""
        start = self.num_tokens
        while self.num_tokens < len(self._trace.tokens) and self.decision.action == "answer":
            self.decision = self._policy.decide(self._metric.add(self._trace.tokens[self.num_tokens]))
            self.num_tokens += 1
        return self._trace.tokens[start : self.num_tokens]

    def tokens(self) -> Sequence[TokenUncertainty]:
        """The answer as far as it was judged."""
        return self._trace.tokens[: self.num_tokens]
