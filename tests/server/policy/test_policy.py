"""Policies: what they accept, when they object, and what of one a request may change."""

import math
from typing import Any, cast

import pytest

from softspec.errors import ConfigError
from softspec.server.policy.policy import Action, Decision, Policy


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
        ("route", "epistemic", None, "'route' needs a threshold"),
        ("abstain", "confidence", 1.1, "expected a probability from 0 to 1"),
        ("refuse", "epistemic", 0.1, "expected answer, abstain or route"),
    ],
)
def test_policies_that_cannot_be_followed_are_refused(
    action: str, metric: str, threshold: float | None, complaint: str
) -> None:
    with pytest.raises(ConfigError, match=complaint):
        Policy(cast(Action, action), metric, threshold)


STRICT = Policy("abstain", "max_epistemic", 0.5, min_tokens=3)
ROUTE = Policy("route", "max_epistemic", 0.5, min_tokens=3, upstream="big", on_failure="error")


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
        (STRICT, {"hold_tokens": 8}, Policy("abstain", "max_epistemic", 0.5, 3, hold_tokens=8)),
        (ROUTE, {"threshold": 0.4}, Policy("route", "max_epistemic", 0.4, 3, None, "big", "error")),
        (ROUTE, {"upstream": "small"}, Policy("route", "max_epistemic", 0.5, 3, None, "small", "error")),
        (ROUTE, {"action": "abstain"}, STRICT),
        (STRICT, {"action": "route"}, Policy("route", "max_epistemic", 0.5, 3)),
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
        (STRICT, {"hold_tokens": -1}, "hold_tokens is -1: expected a number from 0 to 65536"),
        (STRICT, {"hold_tokens": 65_537}, "hold_tokens is 65537: expected a number from 0 to 65536"),
        (Policy(), {"hold_tokens": 4}, "hold_tokens given for action 'answer'"),
        (STRICT, {"upstream": "big"}, "upstream given for action 'abstain', which asks nobody else"),
        (
            STRICT,
            {"on_failure": "error", "upstream": "a"},
            "on_failure and upstream given for action 'abstain'",
        ),
        (STRICT, {"on_failure": "retry"}, "on_failure is 'retry': expected answer, abstain or error"),
        (ROUTE, {"action": "abstain", "upstream": "big"}, "upstream given for action 'abstain'"),
        (ROUTE, {"action": "answer", "on_failure": "abstain"}, "on_failure given for action 'answer'"),
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
