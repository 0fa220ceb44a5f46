"""Policies: what they accept, when they object, and that judging token by token equals judging the whole."""

import math
import random
from typing import cast

import pytest

from softspec.artefact.manifest import WeightsRule
from softspec.engine.trace import ChoiceTrace
from softspec.errors import ConfigError
from softspec.maths.answer import METRICS, TokenUncertainty, summarise
from softspec.server.policy.policy import Action, Decision, Policy, RunningDecision, RunningMetric
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
    assert values == pytest.approx(expected, abs=1e-12)


def test_policy_without_objection_gives_no_reason() -> None:
    policy = Policy("abstain", "epistemic", 0.4)

    assert policy.decide(0.4, num_tokens=1) == Decision("answer", None, None)


@pytest.mark.parametrize(
    ("value", "threshold", "reason"),
    [
        (0.41, 0.4, "epistemic 0.41 > 0.40"),
        (0.6639620644259275, 0.34657359027997264, "epistemic 0.66 > 0.35"),
        (0.4004, 0.4, "epistemic 0.4004 > 0.4000"),
        (1.5, 0.125, "epistemic 1.500 > 0.125"),
        (0.1 + 1e-9, 0.1, "epistemic 0.100000001 > 0.1"),
    ],
)
def test_reason_shows_enough_decimals_to_be_true(value: float, threshold: float, reason: str) -> None:
    decision = Policy("abstain", "epistemic", threshold).decide(value, num_tokens=7)

    assert decision == Decision("abstain", f"{reason} at token 7", decided_at=7)


def test_default_policy_always_answers() -> None:
    assert Policy().decide(99.0, num_tokens=1).action == "answer"


@pytest.mark.parametrize(
    ("action", "metric", "threshold", "complaint"),
    [
        ("abstain", "entropy", 0.1, "expected one of mutual_information, "),
        ("abstain", "epistemic", None, "needs a threshold"),
        ("abstain", "epistemic", -0.1, "finite number of at least 0"),
        ("abstain", "epistemic", math.nan, "finite number of at least 0"),
        ("route", "epistemic", 0.1, "no upstream is configured"),
        ("refuse", "epistemic", 0.1, "expected answer, abstain or route"),
    ],
)
def test_policies_that_cannot_be_followed_are_refused(
    action: str, metric: str, threshold: float | None, complaint: str
) -> None:
    with pytest.raises(ConfigError, match=complaint):
        Policy(cast(Action, action), metric, threshold)


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
