"""A policy applied to a growing answer: the first prefix that it objects to decides.

In: a policy, and the tokens of a choice in their turn. Out: its decision, of which the engine is told at once. Knows no
HTTP and no engine.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

from softspec.artefact.manifest import WeightsRule
from softspec.engine.trace import ChoiceTrace, Judge, JudgeOf
from softspec.maths.answer import TokenUncertainty, summarise
from softspec.server.policy.policy import ANSWER, Decision, Policy


class RunningDecision:
    """A policy and the tokens of one choice so far. Once it objects, the answer ends and nothing after it counts.

    Every token is judged in its turn, so the outcome does not depend on how tokens are grouped into chunks, nor on
    whether the answer is streamed; but of a stream only the tokens that are held back can be replaced.
    """

    def __init__(self, policy: Policy, trace: ChoiceTrace, streamed: bool = False) -> None:
        self._policy = policy
        self._held = held_of(policy) if streamed else None
        self._trace = trace
        self._metric = RunningMetric(policy.metric, trace.log_weights, trace.weights_rule)
        self.num_tokens = 0
        self.decision = ANSWER

    def objects(self, token: TokenUncertainty) -> bool:
        """Judge the answer that ends with this token; true ends it there."""
        if self.decision.action == "answer":
            self.num_tokens += 1
            self.decision = self._in_time(self._policy.decide(self._metric.add(token), self.num_tokens))
        return self.decision.action != "answer"

    def _in_time(self, decision: Decision) -> Decision:
        """The decision, or to abstain where routing would come after tokens that were sent."""
        if decision.action != "route" or self._held is None or self.num_tokens <= self._held:
            return decision
        were = "token was" if self._held == 1 else "tokens were"
        reason = f"{decision.reason}; too late to route: {self._held} {were} held"
        return replace(decision, action="abstain", reason=reason)

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


def held_of(policy: Policy) -> int:
    """How many tokens of a stream are held back; where it may be routed at least the one that is being judged."""
    return max(policy.held, 1) if policy.action == "route" else policy.held


def judge_of(policy: Policy, streamed: bool = False) -> JudgeOf | None:
    """What the engine asks about every token of a choice, so that it computes none after the one that decides.

    An answer that may still be sent, once the upstream fails, goes on to its end.
    """
    if policy.action == "answer":
        return None

    def judge(trace: ChoiceTrace) -> Judge:
        running = RunningDecision(policy, trace, streamed)

        def ends(token: TokenUncertainty) -> bool:
            is_kept = policy.on_failure == "answer"
            return running.objects(token) and not (is_kept and running.decision.action == "route")

        return ends

    return judge


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
