"""Judging token by token: the first prefix that crosses decides, and every value is the one that is reported."""

import random

import pytest

from softspec.artefact.manifest import WeightsRule
from softspec.engine.trace import ChoiceTrace
from softspec.maths.answer import METRICS, summarise
from softspec.server.policy.policy import Decision, Policy
from softspec.server.policy.running import RunningDecision, judge_of
from tests.support.fake_engine import AGREED, TORN, UNIFORM
from tests.support.random_tokens import PRIOR, random_tokens


def test_running_decision_ends_the_answer_at_the_token_that_crosses() -> None:
    trace = ChoiceTrace(UNIFORM, "prefix_posterior", 1, list(TORN))
    running = RunningDecision(Policy("abstain", "max_epistemic", 0.5), trace)

    judged = running.catch_up()

    assert [token.token_id for token in judged] == [0, 1, 2]
    assert running.decision == Decision("abstain", "max_epistemic 0.60 > 0.50 at token 3", 3)


def test_running_decision_does_not_depend_on_how_tokens_arrive() -> None:
    tokens = random_tokens(seed=5, count=12)
    policy = Policy("abstain", "mutual_information", 0.05)
    all_at_once = RunningDecision(policy, ChoiceTrace(PRIOR, "prefix_posterior", 1, tokens))
    growing = ChoiceTrace(PRIOR, "prefix_posterior", 1)
    one_by_one = RunningDecision(policy, growing)

    all_at_once.catch_up()
    for token in tokens:
        growing.tokens.append(token)
        one_by_one.catch_up()

    assert one_by_one.decision == all_at_once.decision
    assert one_by_one.num_tokens == all_at_once.num_tokens < len(tokens)


def test_new_tokens_are_returned_once() -> None:
    trace = ChoiceTrace(UNIFORM, "prefix_posterior", 1, list(AGREED))
    running = RunningDecision(Policy(), trace)

    first, second = running.catch_up(), running.catch_up()

    assert (len(first), len(second)) == (4, 0)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("rule", ["prefix_posterior", "fixed"])
def test_what_is_not_looser_withholds_whatever_the_policy_withholds(metric: str, rule: WeightsRule) -> None:
    """The reason for the order of policies: on random answers none that it calls tighter lets more through."""
    draw = random.Random(7)
    for seed in range(60):
        trace = ChoiceTrace(PRIOR, rule, 1, random_tokens(seed, 8))
        policy, other = (
            Policy("abstain", metric, draw.random() * 0.8, min_tokens=draw.randint(1, 4)) for _ in range(2)
        )
        running, running_other = RunningDecision(policy, trace), RunningDecision(other, trace)
        running.catch_up()
        running_other.catch_up()

        if policy.loosened_by(other) is None and (at := running.decision.decided_at) is not None:
            assert running_other.decision.decided_at is not None
            assert running_other.decision.decided_at <= at


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("rule", ["prefix_posterior", "fixed"])
def test_first_prefix_that_crosses_decides(metric: str, rule: WeightsRule) -> None:
    """The rule by brute force: the summary of every prefix, from min_tokens on."""
    for seed in range(40):
        tokens, min_tokens = random_tokens(seed, 10), 1 + seed % 4
        values = [getattr(summarise(tokens[:end], PRIOR, rule), metric) for end in range(1, 11)]
        threshold = sorted(values)[seed % 10] * 0.999
        running = RunningDecision(
            Policy("abstain", metric, threshold, min_tokens), ChoiceTrace(PRIOR, rule, 1, tokens)
        )

        running.catch_up()

        crossing = [end for end, value in enumerate(values, 1) if value > threshold and end >= min_tokens]
        assert running.decision.decided_at == (crossing[0] if crossing else None)


def test_policy_that_withholds_nothing_needs_no_judge() -> None:
    assert judge_of(Policy()) is None
    assert judge_of(Policy("abstain", "epistemic", 0.5)) is not None


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("rule", ["prefix_posterior", "fixed"])
def test_threshold_that_is_the_reported_value_is_not_crossed(metric: str, rule: WeightsRule) -> None:
    for seed in range(50):
        tokens = random_tokens(seed, count=7)
        threshold = getattr(summarise(tokens, PRIOR, rule), metric)
        running = RunningDecision(
            Policy("abstain", metric, threshold, min_tokens=7), ChoiceTrace(PRIOR, rule, 1, tokens)
        )

        running.catch_up()

        assert running.decision.action == "answer"
