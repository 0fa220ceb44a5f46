"""A policy applied to a growing answer: the first prefix that it objects to decides.

In: a policy, and the tokens of a choice in their turn. Out: its decision, of which the engine is told at once. Knows no
HTTP and no engine.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

from softspec.artefact.manifest import WeightsRule
from softspec.engine.trace import ChoiceTrace, JudgeOf
from softspec.maths.answer import TokenUncertainty, summarise
from softspec.server.policy.policy import ANSWER, Policy


class RunningDecision:
    """A policy and the tokens of one choice so far. Once it objects, the answer ends and nothing after it counts.

    Every token is judged in its turn, so the outcome does not depend on how tokens are grouped into chunks, nor on
    whether the answer is streamed.
    """

    def __init__(self, policy: Policy, trace: ChoiceTrace) -> None:
        self._policy = policy
        self._trace = trace
        self._metric = RunningMetric(policy.metric, trace.log_weights, trace.weights_rule)
        self.num_tokens = 0
        self.decision = ANSWER

    def objects(self, token: TokenUncertainty) -> bool:
        """Judge the answer that ends with this token; true ends it there."""
        if self.decision.action == "answer":
            self.num_tokens += 1
            self.decision = self._policy.decide(self._metric.add(token), self.num_tokens)
        return self.decision.action != "answer"

    def catch_up(self) -> Sequence[TokenUncertainty]:
        """Judge and return the trace's tokens since the last call, up to the one that ends the answer."""
        start = self.num_tokens
        for token in self._trace.tokens[start:]:
            if self.objects(token):
                break
        return self._trace.tokens[start : self.num_tokens]

    def tokens(self) -> Sequence[TokenUncertainty]:
        """The answer as far as it was judged."""
        return self._trace.tokens[: self.num_tokens]


def judge_of(policy: Policy) -> JudgeOf | None:
    """What the engine asks about every token of a choice, so that it computes none after the one that decides."""
    return None if policy.action == "answer" else lambda trace: RunningDecision(policy, trace).objects


class RunningMetric:
    """One metric of a growing answer, O(K) per token; after each it is that field of `summarise`, to the last digit.

    To the last digit, because a caller may give a number that we reported as a threshold.
    """

    def __init__(self, metric: str, log_weights: tuple[float, ...], weights_rule: WeightsRule) -> None:
        self._metric = metric
        self._log_weights = log_weights
        self._weights_rule = weights_rule
        self._num_tokens = 0
        self._largest = -math.inf
        self._total = ExactSum()
        self._member_log_probs = [ExactSum() for _ in log_weights]

    def add(self, token: TokenUncertainty) -> float:
        """The metric of the answer that ends with this token."""
        self._num_tokens += 1
        if self._metric == "mutual_information":
            return self._information(token)
        number: float = getattr(token, self._metric.removeprefix("max_"))
        if self._metric.startswith("max_"):
            self._largest = max(self._largest, number)
            return self._largest
        return self._total.add(number) / self._num_tokens

    def _information(self, token: TokenUncertainty) -> float:
        if self._weights_rule == "fixed":
            return self._total.add(summarise([token], self._log_weights, "fixed").mutual_information)
        pairs = zip(self._member_log_probs, token.member_log_probs, strict=True)
        # The weights after the answer depend on the members' sums alone, so one token stands for all.
        whole = replace(token, member_log_probs=tuple(total.add(log_prob) for total, log_prob in pairs))
        return summarise([whole], self._log_weights, "prefix_posterior").mutual_information


class ExactSum:
    """What `math.fsum` would give, number by number: the parts that rounding cuts off are kept (Shewchuk 1997)."""

    def __init__(self) -> None:
        self._parts: list[float] = []
        self._infinite = 0.0

    def add(self, number: float) -> float:
        """The sum with this number."""
        if math.isinf(number):
            self._infinite += number
        else:
            parts = []
            for part in self._parts:
                total = number + part
                larger, smaller = (number, part) if abs(number) > abs(part) else (part, number)
                if rest := smaller - (total - larger):
                    parts.append(rest)
                number = total
            self._parts = [*parts, number]
        return self._infinite or math.fsum(self._parts)
