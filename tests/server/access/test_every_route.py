"""Every route of vLLM's real HTTP layer: who may use it, and that no model is asked past a key's limits."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import pytest

from softspec.server.access.places import ADMIN, ASKING, CHEAP, OPS, Place
from softspec.server.access.settings import AccessSettings
from tests.support.key_files import key_file, secret
from tests.support.other_routes import FOLLOWERS, GENERATING, HELLO, READ_ONLY
from tests.support.scripted_core import Said, ScriptedAsyncLLM
from tests.support.scripted_vllm import NAME, Server, serving
from tests.support.tiny import random_adapters, tiny_llama

pytestmark = pytest.mark.vllm

BASE = "tiny-base"
MEMBER = f"{NAME}/member-0"
BODIES: dict[str, dict[str, Any]] = {
    **FOLLOWERS,
    **GENERATING,
    **READ_ONLY,
    "/v1/uncertainty": {"prompt": "hello", "answers": ["yes"]},
    "/v1/decisions": {"input": "a", "questions": [{"type": "predicate", "instructions": "b"}]},
}
KEYS: dict[str, dict[str, Any]] = {
    "all": {},
    "ensemble": {"models": [NAME]},
    "member": {"models": [MEMBER]},
    "base": {"models": [BASE]},
    "abstainer": {"actions": ["abstain"]},
    "root": {"admin": True},
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("models")
    ensemble = random_adapters(tiny_llama(folder / BASE), folder / NAME, num_members=2)
    access = AccessSettings(keys=key_file(folder, **KEYS))
    with serving(
        ensemble,
        "--enable-scale-out",
        engine_of=ScriptedAsyncLLM,
        access=access,
        VLLM_ALLOW_RUNTIME_LORA_UPDATING="1",
    ) as server:
        server.engine.play([Said("a"), Said("b"), Said("c")])
        server.wait_until_ready()
        yield server


def ask(server: Server, method: str, path: str, key: str | None = None, **given: Any) -> Any:
    headers = {} if key is None else {"authorization": f"Bearer {secret(key)}"}
    headers |= given.pop("headers", {})
    return server.run(server.http.request(method, path, headers=headers, **given))


def routes(server: Server) -> list[tuple[str, str]]:
    """Every method and path that there is."""
    found = [
        (method, route.path)
        for route in server.app.routes
        for method in getattr(route, "methods", None) or ["GET"]
    ]
    return sorted({(method, path) for method, path in found if method != "HEAD"})


def test_every_route_of_this_vllm_is_listed_once(server: Server) -> None:
    """A route of a new vLLM needs an admin key until it is listed: what does it cost, and whom does it tell what?"""
    known = {
        path: sum((Place(path).is_open, path in OPS, path in ASKING, path in CHEAP, path in ADMIN))
        for _, path in routes(server)
    }

    assert known == dict.fromkeys(known, 1)


def test_no_route_but_probes_and_what_operators_look_at_answers_without_a_key(server: Server) -> None:
    told = {}
    for method, path in routes(server):
        for key in (None, "nobody"):
            told[method, path, key] = ask(server, method, path, key, json={}).status_code

    let_in = {path for (_, path, _), status in told.items() if status != 401}
    assert {path for path in let_in if not Place(path).is_open} <= OPS
    assert {"/health", "/metrics"} <= let_in


def test_what_is_for_admins_is_refused_to_other_keys(server: Server) -> None:
    told = {
        path: ask(server, method, path, "all", json={}).status_code
        for method, path in routes(server)
        if path in ADMIN
    }

    assert told == dict.fromkeys(told, 403)
    assert "/v1/load_ensemble" in told


def test_admin_may_load(server: Server) -> None:
    answer = ask(server, "POST", "/v1/unload_ensemble", "root", json={"name": "nobody"})

    assert answer.status_code == 404


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize(
    ("key", "model"),
    [
        ("base", NAME),
        ("base", None),
        ("base", ""),
        ("ensemble", MEMBER),
        ("ensemble", BASE),
        ("member", NAME),
    ],
)
def test_model_that_the_key_may_not_ask_is_refused_on_every_route(
    server: Server, path: str, key: str, model: str | None
) -> None:
    core = server.engine.play([Said("a")])
    named = {} if model is None else {"model": model}

    answer = ask(server, "POST", path, key, json=BODIES[path] | named)

    assert answer.status_code == 403, answer.text
    assert f"the API key '{key}' may not ask '{model or NAME}'" in answer.json()["error"]["message"]
    assert core.said == []


@pytest.mark.parametrize(
    "path", [*FOLLOWERS, *READ_ONLY, "/v1/uncertainty", "/invocations", "/v1/chat/completions/batch"]
)
@pytest.mark.parametrize(
    ("key", "model"), [("ensemble", NAME), ("ensemble", None), ("member", MEMBER), ("root", NAME)]
)
def test_model_that_the_key_may_ask_answers(server: Server, path: str, key: str, model: str | None) -> None:
    server.engine.play([Said("a")])
    named = {} if model is None else {"model": model}

    answer = ask(server, "POST", path, key, json=BODIES[path] | named)

    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize("path", ["/invocations", "/v1/chat/completions/batch", "/inference/v1/generate"])
def test_key_that_may_not_answer_gets_no_answer_past_every_policy(server: Server, path: str) -> None:
    core = server.engine.play([Said("a")])

    answer = ask(server, "POST", path, "abstainer", json=BODIES[path] | {"model": NAME})

    assert answer.status_code == 403, answer.text
    assert "may not have policy action 'answer'" in answer.json()["error"]["message"]
    assert core.said == []


def test_header_that_names_a_model_is_looked_at_too(server: Server) -> None:
    header = {"X-Amzn-SageMaker-Adapter-Identifier": MEMBER}

    answer = ask(
        server,
        "POST",
        "/invocations",
        "ensemble",
        json=BODIES["/invocations"] | {"model": NAME},
        headers=header,
    )

    assert answer.status_code == 403


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("all", [NAME, MEMBER, f"{NAME}/member-1", BASE]),
        ("ensemble", [NAME]),
        ("member", [MEMBER]),
        ("base", [BASE]),
        ("root", [NAME, MEMBER, f"{NAME}/member-1", BASE]),
    ],
)
def test_list_of_models_has_those_that_the_key_may_ask(server: Server, key: str, expected: list[str]) -> None:
    answer = ask(server, "GET", "/v1/models", key)

    assert [model["id"] for model in answer.json()["data"]] == expected


@pytest.mark.parametrize(
    ("key", "model", "error"),
    [("nobody", NAME, anthropic.AuthenticationError), ("base", NAME, anthropic.PermissionDeniedError)],
)
def test_client_of_anthropic_sends_its_key_and_understands_the_refusal(
    server: Server, key: str, model: str, error: type[anthropic.APIStatusError]
) -> None:
    client = anthropic.AsyncAnthropic(
        base_url="http://server", api_key=secret(key), http_client=server.http, max_retries=0
    )

    with pytest.raises(error) as refused:
        server.run(client.messages.create(model=model, messages=HELLO, max_tokens=3))

    body: Any = refused.value.body
    assert body["error"]["type"] in ("authentication_error", "permission_error")


def test_client_of_anthropic_with_a_known_key_is_answered(server: Server) -> None:
    server.engine.play([Said("a")])
    client = anthropic.AsyncAnthropic(
        base_url="http://server", api_key=secret("ensemble"), http_client=server.http, max_retries=0
    )

    assert server.run(client.messages.create(model=NAME, messages=HELLO, max_tokens=3)).model == NAME


def test_keys_of_vllm_beside_ours_end_the_start(tmp_path: Path) -> None:
    from softspec.errors import ConfigError

    ensemble = random_adapters(tiny_llama(tmp_path / BASE), tmp_path / NAME, num_members=2)
    access = AccessSettings(keys=key_file(tmp_path, all={}))

    with pytest.raises(ConfigError, match="two doors"), serving(ensemble, "--api-key", "x", access=access):
        pass
