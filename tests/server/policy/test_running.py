"""Judging token by token: the first prefix that crosses decides, and every value is the one that is reported."""

import math
import random

import pytest

from softspec.artefact.manifest import WeightsRule
from softspec.engine.trace import ChoiceTrace
from softspec.maths.answer import METRICS, TokenUncertainty, summarise
from softspec.server.policy.policy import Decision, Policy
from softspec.server.policy.running import ExactSum, RunningDecision, RunningMetric, judge_of
from tests.support.fake_engine import AGREED, TORN, UNIFORM

PRIOR = (math.log(0.5), math.log(0.3), math.log(0.2))


def random_tokens(seed: int, count: int) -> list[TokenUncertainty]:
    draw = random.Random(seed)
    return [
        TokenUncertainty(
            token_id=draw.randrange(100),
            log_prob=-draw.random(),
            total_entropy=draw.random(),
            aleatoric_entropy=draw.random(),
            epistemic=draw.random(),
            disagreement=draw.random(),
            member_log_probs=tuple(-3 * draw.random() for _ in PRIOR),
        )
        for _ in range(count)
    ]


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("rule", ["prefix_posterior", "fixed"])
def test_running_metric_equals_the_summary_of_every_prefix(metric: str, rule: WeightsRule) -> None:
    tokens = random_tokens(seed=3, count=9)
    running = RunningMetric(metric, PRIOR, rule)

    values = [running.add(token) for token in tokens]

    expected = [getattr(summarise(tokens[:end], PRIOR, rule), metric) for end in range(1, len(tokens) + 1)]
    assert values == expected


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


def test_sum_is_that_of_the_standard_library_at_any_size_of_numbers() -> None:
    draw = random.Random(11)
    for _ in range(200):
        numbers = [draw.uniform(-1, 1) * 10 ** draw.randint(-20, 20) for _ in range(30)]
        total = ExactSum()

        assert [total.add(number) for number in numbers] == [math.fsum(numbers[:end]) for end in range(1, 31)]


def test_sum_with_an_impossible_token_stays_minus_infinity() -> None:
    total = ExactSum()

    assert [total.add(number) for number in (-1.0, -math.inf, -2.0)] == [-1.0, -math.inf, -math.inf]
