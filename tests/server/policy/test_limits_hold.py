"""Whatever a request asks, the server's limits hold: random policies, limits and answers.

An answer is a row of values of its metric, one a token; what leaves of it is counted here by hand.
"""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, get_args

from hypothesis import given
from hypothesis import strategies as st

from softspec.errors import ConfigError
from softspec.maths.answer import METRICS
from softspec.server.policy.fields import PolicyFields
from softspec.server.policy.policy import CONFIDENCE, OnFailure, Policy
from softspec.server.policy.rules import PolicyRules

UPSTREAMS = ("big", "small")
VALUES = st.sampled_from((0.0, 0.1, 0.2, 0.3, 0.5, 0.9))
FIELDS = st.fixed_dictionaries(
    {},
    optional={
        "action": st.sampled_from(("answer", "abstain", "route")),
        "metric": st.sampled_from((*METRICS[:2], CONFIDENCE)),
        "threshold": VALUES,
        "min_tokens": st.integers(1, 4),
        "hold_tokens": st.integers(0, 4),
        "upstream": st.sampled_from((*UPSTREAMS, "unknown")),
        "on_failure": st.sampled_from(("answer", "abstain", "error")),
    },
)
ANSWERS = st.lists(VALUES, max_size=9)


@st.composite
def policies(draw: st.DrawFn) -> Policy:
    """A policy that acts, as an operator may have it."""
    rule: dict[str, Any] = {
        "metric": draw(st.sampled_from(METRICS[:2])),
        "threshold": draw(VALUES),
        "min_tokens": draw(st.integers(1, 4)),
        "hold_tokens": draw(st.none() | st.integers(0, 4)),
    }
    if draw(st.booleans()):
        return Policy("abstain", **rule)
    failure = draw(st.sampled_from(get_args(OnFailure)))
    return Policy("route", **rule, upstream=draw(st.sampled_from(UPSTREAMS)), on_failure=failure)


def asked(rules: PolicyRules, fields: dict[str, Any]) -> Policy | None:
    """The policy of a request; None if it is refused."""
    try:
        return rules.asked_by(PolicyFields(**fields))
    except ConfigError:
        return None


def crossing(policy: Policy, values: Sequence[float]) -> int | None:
    """The token that decides: the first prefix that is long enough and above the threshold."""
    threshold = policy.threshold
    if not isinstance(threshold, float | int):
        return None
    prefixes = range(policy.min_tokens, len(values) + 1)
    return next((end for end in prefixes if values[end - 1] > threshold), None)


def sent(policy: Policy, values: Sequence[float]) -> int:
    """How many tokens of a stream have left: all, or those before the crossing that are no longer held."""
    end = crossing(policy, values)
    return len(values) if end is None else max(0, end - 1 - policy.held)


def sent_when_the_upstream_fails(policy: Policy, values: Sequence[float]) -> int:
    is_sent = policy.action == "route" and policy.on_failure == "answer"
    return len(values) if is_sent else sent(policy, values)


@given(default=policies(), fields=FIELDS, values=ANSWERS)
def test_no_request_gets_more_past_a_pinned_policy(
    default: Policy, fields: dict[str, Any], values: list[float]
) -> None:
    policy = asked(PolicyRules(default, UPSTREAMS, pinned=True), fields)

    if policy is not None:
        assert sent(policy, values) <= sent(default, values)
        assert sent_when_the_upstream_fails(policy, values) <= sent_when_the_upstream_fails(default, values)
        assert policy.upstream in (None, default.upstream)


@given(default=policies() | st.builds(Policy), fields=FIELDS)
def test_policy_that_may_not_be_changed_is_not(default: Policy, fields: dict[str, Any]) -> None:
    policy = asked(PolicyRules(default, UPSTREAMS, allow_override=False), fields)

    if policy is not None:
        assert asdict(policy) | {"hold_tokens": policy.held} == asdict(default) | {
            "hold_tokens": default.held
        }


@given(
    default=policies(),
    fields=FIELDS,
    actions=st.none() | st.sets(st.sampled_from(("answer", "abstain", "route")), min_size=1).map(tuple),
    upstreams=st.none() | st.sets(st.sampled_from(UPSTREAMS)).map(tuple),
)
def test_no_request_gets_an_action_or_an_upstream_that_is_not_allowed(
    default: Policy, fields: dict[str, Any], actions: Any, upstreams: Any
) -> None:
    try:
        rules = PolicyRules(default, UPSTREAMS, allowed_actions=actions, allowed_upstreams=upstreams)
    except ConfigError:
        return  # the operator's own policy is outside: no such server starts

    for policy in (rules.default, asked(rules, fields)):
        if policy is not None:
            assert actions is None or policy.action in actions
            assert policy.action != "route" or policy.upstream in (
                UPSTREAMS if upstreams is None else upstreams
            )


@given(default=policies() | st.builds(Policy), fields=FIELDS)
def test_field_that_is_given_holds_and_any_other_stays(default: Policy, fields: dict[str, Any]) -> None:
    policy = asked(PolicyRules(default, UPSTREAMS), fields)

    if policy is not None and policy.action != "answer":
        other = {name: value for name, value in asdict(policy).items() if name not in fields}
        stays = asdict(default) if default.action == policy.action else asdict(policy)
        assert {name: getattr(policy, name) for name in fields} == fields
        assert other == {name: stays[name] for name in other}


@given(policy=policies(), values=ANSWERS)
def test_decision_is_that_of_the_first_prefix_that_crosses(policy: Policy, values: list[float]) -> None:
    """Whatever comes after it: values fall as they rise."""
    decisions = [policy.decide(value, end) for end, value in enumerate(values, 1)]

    first = next((decision for decision in decisions if decision.action != "answer"), None)
    assert (first.decided_at if first else None) == crossing(policy, values)
    assert first is None or first.action == policy.action
