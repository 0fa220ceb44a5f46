"""What a server says when it is ready tells which policy holds, whoever said so."""

import pytest

from softspec.server.ops.place import Place
from softspec.server.ops.welcome import welcome
from softspec.server.policy.policy import Policy
from softspec.server.policy.rules import PolicyRules

ABSTAIN = Policy("abstain", "max_epistemic", 0.5)
ROUTE = Policy("route", "max_epistemic", 0.5, min_tokens=2, on_failure="error")
BOTH = ("big", "small")


@pytest.mark.parametrize(
    ("rules", "told"),
    [
        (PolicyRules(), "'answer': no answer is withheld unless a request asks for it"),
        (PolicyRules(allow_override=False), "'answer': no answer is withheld"),
        (
            PolicyRules(allowed_actions=("answer", "abstain")),
            "'answer': no answer is withheld unless a request asks for it (allowed actions answer, abstain)",
        ),
        (PolicyRules(ABSTAIN), "'abstain' once max_epistemic is above 0.5, which requests may change"),
        (
            PolicyRules(Policy("abstain", threshold=0.35, hold_tokens=8), pinned=True),
            "'abstain' once mutual_information is above 0.35, 8 tokens of a stream held back, which requests may only "
            "tighten",
        ),
        (
            PolicyRules(ROUTE, ("big",), allow_override=False),
            "'route' to 'big' once max_epistemic is above 0.5 from token 2 on, 16 tokens of a stream held back, "
            "'error' where that fails, which requests may not change",
        ),
        (
            PolicyRules(ABSTAIN, BOTH, allowed_actions=("abstain", "route"), allowed_upstreams=("small",)),
            "'abstain' once max_epistemic is above 0.5, which requests may change (allowed actions abstain, route; "
            "upstreams small)",
        ),
    ],
)
def test_policy_is_told_with_what_requests_may_do(rules: PolicyRules, told: str) -> None:
    lines = welcome({}, ["base"], rules, Place(None, 8000)).splitlines()

    assert lines[2] == f"  policy {told}"
