"""What of the server's policy a request may change, and that the server's own lies within its limits."""

from typing import Any

import pytest

from softspec.errors import ConfigError
from softspec.server.policy.fields import PolicyFields
from softspec.server.policy.policy import Policy
from softspec.server.policy.rules import PolicyRules

ABSTAIN = Policy("abstain", "max_epistemic", 0.5, min_tokens=3)
ROUTE = Policy("route", "max_epistemic", 0.5, min_tokens=3, upstream="big", on_failure="error")
BOTH = ("big", "small")


def asked(rules: PolicyRules, **fields: Any) -> Policy:
    return rules.asked_by(PolicyFields(**fields))


def refusal(rules: PolicyRules, **fields: Any) -> tuple[str | None, str]:
    """The field and the text of the refusal."""
    with pytest.raises(ConfigError) as error:
        asked(rules, **fields)
    return getattr(error.value, "field", None), str(error.value)


def test_route_without_a_name_goes_to_the_only_upstream() -> None:
    rules = PolicyRules(upstreams=("big",))

    assert asked(rules, action="route", threshold=0.1) == Policy("route", threshold=0.1, upstream="big")


def test_route_without_a_name_goes_to_the_only_upstream_that_is_allowed() -> None:
    rules = PolicyRules(upstreams=BOTH, allowed_upstreams=("small",))

    assert asked(rules, action="route", threshold=0.1).upstream == "small"


@pytest.mark.parametrize(
    ("rules", "fields", "field", "complaint"),
    [
        (PolicyRules(), {"action": "route"}, None, "action 'route' needs a threshold"),
        (
            PolicyRules(),
            {"action": "route", "threshold": 1},
            None,
            "no upstream is configured; start the server with --upstream NAME=URL",
        ),
        (
            PolicyRules(upstreams=BOTH),
            {"action": "route", "threshold": 1},
            "upstream",
            "policy upstream is missing: expected one of big, small",
        ),
        (
            PolicyRules(upstreams=BOTH),
            {"action": "route", "threshold": 1, "upstream": "huge"},
            "upstream",
            "policy upstream is 'huge': expected one of big, small",
        ),
        (
            PolicyRules(upstreams=BOTH),
            {"action": "route", "threshold": 1, "upstream": "a\nb" + 99 * "c"},
            "upstream",
            "policy upstream is '\"a\\nbccccc",
        ),
        (
            PolicyRules(upstreams=BOTH, allowed_upstreams=("big",)),
            {"action": "route", "threshold": 1, "upstream": "small"},
            "upstream",
            "policy upstream is 'small': expected one of big",
        ),
        (
            PolicyRules(allowed_actions=("answer",)),
            {"action": "abstain", "threshold": 1},
            "action",
            "policy action 'abstain' is not allowed: expected one of answer",
        ),
        (
            PolicyRules(Policy("abstain", threshold=1), upstreams=BOTH, allowed_actions=("abstain", "route")),
            {"action": "route", "upstream": "big", "on_failure": "answer"},
            "on_failure",
            "policy on_failure 'answer' is not allowed: expected abstain or error",
        ),
        (
            PolicyRules(),
            {"action": "abstain", "metric": "confidence", "threshold": 0.5},
            "metric",
            "policy metric 'confidence' needs an ensemble that was calibrated for what is asked",
        ),
    ],
)
def test_what_this_server_cannot_or_may_not_do_is_refused_by_name(
    rules: PolicyRules, fields: dict[str, Any], field: str | None, complaint: str
) -> None:
    found, message = refusal(rules, **fields)

    assert found == field
    assert "\n" not in message
    assert len(message) < 200
    assert complaint in message


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"action": "route"},
        {"threshold": 0.5, "min_tokens": 3},
        {"hold_tokens": 16},
        {"upstream": "big"},
        {"on_failure": "error"},
    ],
)
def test_policy_that_says_what_the_servers_does_passes_where_nothing_may_be_changed(
    fields: dict[str, Any],
) -> None:
    rules = PolicyRules(ROUTE, BOTH, allow_override=False)

    assert asked(rules, **fields).held == 16


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"action": "answer"}, "action"),
        ({"action": "abstain"}, "action"),
        ({"threshold": 0.4}, "threshold"),
        ({"hold_tokens": 17}, "hold_tokens"),
        ({"upstream": "small"}, "upstream"),
        ({"on_failure": "abstain"}, "on_failure"),
    ],
)
def test_policy_that_differs_is_refused_where_nothing_may_be_changed(
    fields: dict[str, Any], field: str
) -> None:
    rules = PolicyRules(ROUTE, BOTH, allow_override=False)

    assert refusal(rules, **fields) == (
        field,
        f"{field} differs from the server's policy, which holds for every request: leave the policy out",
    )


@pytest.mark.parametrize(
    ("default", "fields", "loosened"),
    [
        (ABSTAIN, {"hold_tokens": 8}, None),
        (ABSTAIN, {"action": "route", "upstream": "big"}, "action"),
        (ABSTAIN, {"action": "answer"}, "action"),
        (ROUTE, {"threshold": 0.1, "min_tokens": 1, "hold_tokens": 99}, None),
        (ROUTE, {"on_failure": "abstain"}, None),
        (ROUTE, {"on_failure": "answer"}, "on_failure"),
        (ROUTE, {"upstream": "small"}, "upstream"),
        (ROUTE, {"hold_tokens": 15}, "hold_tokens"),
        (ROUTE, {"action": "abstain", "hold_tokens": 16}, None),
        (ROUTE, {"action": "abstain"}, "hold_tokens"),
        (ROUTE, {"action": "answer"}, "action"),
    ],
)
def test_pinned_policy_is_only_tightened(
    default: Policy, fields: dict[str, Any], loosened: str | None
) -> None:
    rules = PolicyRules(default, BOTH, pinned=True)

    if loosened is None:
        assert asked(rules, **fields) == default.changed(**fields)
    else:
        assert refusal(rules, **fields)[0] == loosened


def test_abstaining_in_place_of_a_pinned_route_must_hold_what_the_route_held() -> None:
    _, message = refusal(PolicyRules(ROUTE, BOTH, pinned=True), action="abstain")

    assert message.endswith("hold_tokens would loosen the server's policy, which is pinned: give at least 16")


@pytest.mark.parametrize(
    ("limits", "complaint"),
    [
        ({"default": ROUTE}, "no upstream is configured"),
        ({"default": ROUTE, "upstreams": ("small",)}, "upstream is 'big': expected one of small"),
        ({"default": Policy("route", threshold=0.1), "upstreams": BOTH}, "upstream is missing: expected one"),
        ({"default": ROUTE, "upstreams": BOTH, "allowed_upstreams": ("small",)}, "expected one of small"),
        ({"allowed_upstreams": ("big",)}, "allowed_upstreams names 'big': there is none"),
        ({"allowed_actions": ("abstain",)}, "action 'answer' is not allowed: expected one of abstain"),
        ({"pinned": True}, "pinned but withholds nothing"),
    ],
)
def test_server_whose_own_policy_lies_outside_of_its_limits_does_not_start(
    limits: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(ConfigError, match=complaint):
        PolicyRules(**limits)


def test_servers_own_route_takes_the_only_upstream() -> None:
    rules = PolicyRules(Policy("route", threshold=0.1), upstreams=("big",))

    assert rules.default.upstream == "big"
