"""A server with a policy answers for an ensemble only where the policy is followed."""

from pathlib import Path

import pytest

from softspec.engine.trace import tracing
from softspec.errors import ConfigError
from softspec.server.chat.guard import policy_guard
from softspec.server.policy.policy import Policy
from tests.support.tiny import random_adapters, tiny_llama

ABSTAIN = Policy("abstain", "epistemic", 0.1)


def test_route_without_a_trace_is_refused_by_the_name_of_the_ensemble() -> None:
    with pytest.raises(ConfigError, match=r"policy 'abstain': ask 'jurists' at /v1/chat/completions or"):
        policy_guard(ABSTAIN)("jurists")


def test_routes_that_follow_the_policy_may_ask() -> None:
    with tracing():
        policy_guard(ABSTAIN)("jurists")


def test_server_without_a_policy_lets_every_route_ask() -> None:
    policy_guard(Policy("answer"))("jurists")


@pytest.mark.vllm
def test_no_answer_that_the_operator_wants_withheld_leaves_by_another_route(tmp_path: Path) -> None:
    from tests.support.scripted_vllm import NAME, serving

    base = tiny_llama(tmp_path / "tiny-base")
    ensemble = random_adapters(base, tmp_path / "ensemble", num_members=2)

    with serving(ensemble, policy=ABSTAIN) as server:
        refused = server.post("/v1/responses", {"model": NAME, "input": "hello"})
        answered = server.post("/v1/responses", {"model": "tiny-base", "input": "hello"})
        followed = server.chat()

    assert "does not follow the server's policy" in refused.json()["error"]["message"]
    assert (refused.status_code, answered.status_code) == (400, 200)
    assert followed.choices[0].uncertainty["decision"] == "abstain"
