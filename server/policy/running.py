"""A policy applied to a growing answer: the first prefix that it objects to decides.

In: a policy, and the tokens of a choice in their turn. Out: its decision, of which the engine is told at once. Knows no
HTTP and no engine.
"""

from collections.abc import Sequence
from dataclasses import replace

from softspec.artefact.calibration import CONFIDENCE, Calibration, calibration_of
from softspec.artefact.manifest import WeightsRule
from softspec.engine.trace import ChoiceTrace, Judge, JudgeOf
from softspec.errors import ConfigError
from softspec.maths.answer import TokenUncertainty
from softspec.maths.running import RunningMetric
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
        self._metric = _running(policy, trace)
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


class RunningConfidence:
    """The calibrated probability that a growing answer is right; after each token that of `summarise`'s numbers."""

    def __init__(self, calibration: Calibration, log_weights: tuple[float, ...], rule: WeightsRule) -> None:
        self._calibration = calibration
        self._metrics = {name: RunningMetric(name, log_weights, rule) for name in calibration.metrics}

    def add(self, token: TokenUncertainty) -> float:
        """The confidence in the answer that ends with this token."""
        return self._calibration.confidence({name: each.add(token) for name, each in self._metrics.items()})


def _running(policy: Policy, trace: ChoiceTrace) -> RunningMetric | RunningConfidence:
    """What the policy compares, of the ensemble that answers.

    Raises:
        ConfigError: it is not the ensemble by whose calibration the policy was read.
    """
    calibration = policy.calibration
    if calibration is not None and calibration != calibration_of(trace.calibration, "answers"):
        raise ConfigError(
            "the ensemble was replaced by one with another calibration while the request was on its way: ask again"
        )
    if policy.metric != CONFIDENCE or calibration is None:
        return RunningMetric(policy.metric, trace.log_weights, trace.weights_rule)
    return RunningConfidence(calibration, trace.log_weights, trace.weights_rule)


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
