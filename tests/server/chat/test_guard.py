"""A server with a policy answers for an ensemble only where the policy is followed."""

from collections.abc import Iterator
from typing import Any

import pytest

from softspec.engine.trace import tracing
from softspec.errors import ConfigError
from softspec.server.chat.guard import policy_guard
from softspec.server.policy.policy import Action, Policy
from tests.support.other_routes import FOLLOWERS, GENERATING, READ_ONLY, STREAMED
from tests.support.tiny import random_adapters, tiny_llama

BASE, NAME = "tiny-base", "tiny-ensemble"
ABSTAIN = Policy("abstain", "max_epistemic", 0.3)


@pytest.mark.parametrize("action", ["abstain", "route"])
def test_route_that_would_ignore_the_policy_is_refused_whatever_the_policy_does(action: Action) -> None:
    policy = Policy(action, "max_epistemic", 0.3, upstream="big" if action == "route" else None)

    with pytest.raises(ConfigError, match=f"does not follow the server's policy '{action}': ask 'jurists'"):
        policy_guard(policy)("jurists")


def test_route_without_a_trace_is_refused_by_the_name_of_the_ensemble() -> None:
    with pytest.raises(ConfigError, match=r"policy 'abstain': ask 'jurists' at /v1/chat/completions or"):
        policy_guard(ABSTAIN)("jurists")


def test_routes_that_follow_the_policy_may_ask() -> None:
    with tracing():
        policy_guard(ABSTAIN)("jurists")


def test_server_without_a_policy_lets_every_route_ask() -> None:
    policy_guard(Policy("answer"))("jurists")


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    from tests.support.scripted_core import Said, ScriptedAsyncLLM
    from tests.support.scripted_vllm import serving

    folder = tmp_path_factory.mktemp("models")
    ensemble = random_adapters(tiny_llama(folder / BASE), folder / "ensemble", num_members=2)
    with serving(ensemble, "--enable-scale-out", policy=ABSTAIN, engine_of=ScriptedAsyncLLM) as server:
        server.engine.play([Said("a"), Said("b"), Said("c", 0.9)])
        server.wait_until_ready()
        yield server


@pytest.mark.vllm
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("named", [{"model": NAME}, {}], ids=["named", "not named"])
@pytest.mark.parametrize("path", GENERATING)
def test_no_answer_that_the_operator_wants_withheld_leaves_by_another_route(
    strict: Any, path: str, named: dict[str, str], stream: bool
) -> None:
    before = len(strict.engine.engine_core.said)
    body = {**GENERATING[path], **named, **({"stream": True} if stream and path in STREAMED else {})}

    answer = strict.post(path, body)

    message = answer.json()["error"]["message"]
    assert (answer.status_code, len(strict.engine.engine_core.said)) == (400, before)
    assert f"{path} does not follow the server's policy 'abstain': ask '{NAME}' at /v1/chat" in message


@pytest.mark.vllm
@pytest.mark.parametrize("path", READ_ONLY)
def test_routes_that_generate_nothing_still_read_for_the_ensemble(strict: Any, path: str) -> None:
    assert strict.post(path, {**READ_ONLY[path], "model": NAME}).status_code == 200


@pytest.mark.vllm
@pytest.mark.parametrize("path", ["/v1/responses", "/v1/messages", "/invocations"])
def test_base_has_no_policy_on_any_route(strict: Any, path: str) -> None:
    assert strict.post(path, {**FOLLOWERS, **GENERATING}[path] | {"model": BASE}).status_code == 200


@pytest.mark.vllm
@pytest.mark.parametrize("path", FOLLOWERS)
def test_policy_is_followed_where_no_model_is_named(strict: Any, path: str) -> None:
    from tests.support.scripted_core import Said

    strict.engine.play([Said("a"), Said("b"), Said("c", 0.9)])

    answer = strict.post(path, FOLLOWERS[path]).json()

    [choice] = answer.get("choices", [answer])
    assert answer["model"] == NAME
    assert choice["uncertainty"]["decided_at"] == 3
