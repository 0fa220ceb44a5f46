"""Policies: what they accept, when they object, and that judging token by token equals judging the whole."""

import math
import random
from typing import Any, cast

import pytest

from softspec.artefact.manifest import WeightsRule
from softspec.engine.trace import ChoiceTrace
from softspec.errors import ConfigError
from softspec.maths.answer import METRICS, TokenUncertainty, summarise
from softspec.server.policy.policy import (
    Action,
    Decision,
    Policy,
    RunningDecision,
    RunningMetric,
    judge_of,
)
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


STRICT = Policy("abstain", "max_epistemic", 0.5, min_tokens=3)


@pytest.mark.parametrize(
    ("default", "fields", "expected"),
    [
        (STRICT, {}, STRICT),
        (STRICT, {"threshold": 0.2}, Policy("abstain", "max_epistemic", 0.2, 3)),
        (STRICT, {"min_tokens": 1}, Policy("abstain", "max_epistemic", 0.5, 1)),
        (STRICT, {"metric": "max_epistemic"}, STRICT),
        (STRICT, {"metric": "epistemic", "threshold": 0.1}, Policy("abstain", "epistemic", 0.1, 3)),
        (STRICT, {"action": "abstain"}, STRICT),
        (STRICT, {"action": "answer"}, Policy()),
        (Policy(), {}, Policy()),
        (Policy(), {"action": "answer"}, Policy()),
        (Policy(), {"action": "abstain", "threshold": 0.0}, Policy("abstain", "mutual_information", 0.0, 1)),
    ],
)
def test_field_that_is_not_given_is_the_servers(
    default: Policy, fields: dict[str, Any], expected: Policy
) -> None:
    assert default.changed(**fields) == expected


@pytest.mark.parametrize(
    ("default", "fields", "complaint"),
    [
        (Policy(), {"threshold": 0.0}, "threshold given for action 'answer', which withholds nothing"),
        (
            Policy(),
            {"metric": "epistemic", "threshold": 0.3},
            "metric and threshold given for action 'answer'",
        ),
        (Policy(), {"min_tokens": 4}, "min_tokens given for action 'answer'"),
        (Policy(), {"metric": "doubt"}, "policy metric is 'doubt'"),
        (STRICT, {"action": "answer", "threshold": 0.3}, "threshold given for action 'answer'"),
        (STRICT, {"metric": "epistemic"}, "needs a threshold"),
        (STRICT, {"min_tokens": 0}, "min_tokens is 0: expected a number of at least 1"),
        (STRICT, {"action": "route"}, "no upstream"),
    ],
)
def test_rule_that_would_be_ignored_is_refused(
    default: Policy, fields: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(ConfigError, match=complaint):
        default.changed(**fields)


@pytest.mark.parametrize(
    ("fields", "loosened"),
    [
        ({}, None),
        ({"threshold": 0.5}, None),
        ({"threshold": 0.1, "min_tokens": 1}, None),
        ({"action": "answer"}, "action"),
        ({"metric": "epistemic", "threshold": 0.0}, "metric"),
        ({"threshold": 0.500001}, "threshold"),
        ({"min_tokens": 4}, "min_tokens"),
    ],
)
def test_loosened_field_is_named(fields: dict[str, Any], loosened: str | None) -> None:
    assert STRICT.loosened_by(STRICT.changed(**fields)) == loosened


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
    assert judge_of(STRICT) is not None
