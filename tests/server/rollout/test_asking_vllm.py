"""Every route of vLLM's real HTTP layer knows aliases, and asks the ensemble behind them as if it had been named."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from softspec.server.access.settings import AccessSettings
from softspec.server.rollout.settings import Shadow
from tests.support.key_files import key_file, secret
from tests.support.other_routes import FOLLOWERS, GENERATING, READ_ONLY
from tests.support.scripted_core import Said, ScriptedAsyncLLM
from tests.support.scripted_vllm import NAME, Server, serving
from tests.support.tiny import random_adapters, tiny_llama

pytestmark = pytest.mark.vllm

OTHER = "other"
ALIAS = "my"
FOLLOWED = "followed"
BODIES: dict[str, dict[str, Any]] = {
    **FOLLOWERS,
    **GENERATING,
    **READ_ONLY,
    "/v1/uncertainty": {"prompt": "hello", "answers": ["yes"]},
    "/v1/decisions": {"input": "a", "questions": [{"type": "predicate", "instructions": "b"}]},
}
NO_ENSEMBLES = ("/generative_scoring",)
"""Routes that no ensemble answers, whatever it is called."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    base = tiny_llama(folder / "tiny-base")
    random_adapters(base, folder / NAME, num_members=2, name=NAME)
    random_adapters(base, folder / OTHER, num_members=2, name=OTHER, seed=1)
    return folder


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    keys = key_file(folder, outer={"models": [ALIAS]}, root={"admin": True})
    with serving(
        folder / NAME,
        "--enable-scale-out",
        engine_of=ScriptedAsyncLLM,
        access=AccessSettings(keys=keys),
        aliases={ALIAS: {NAME: 90, OTHER: 10}, FOLLOWED: {NAME: 1}},
        shadows={OTHER: Shadow(of=FOLLOWED, share=1)},
        beside=[folder / OTHER],
        VLLM_ALLOW_RUNTIME_LORA_UPDATING="1",
    ) as server:
        server.engine.play([Said("a"), Said("b"), Said("c")])
        server.wait_until_ready()
        yield server


def ask(server: Server, path: str, body: dict[str, Any], key: str = "outer") -> Any:
    headers = {"authorization": f"Bearer {secret(key)}"}
    return server.run(server.http.post(path, json=body, headers=headers))


def models(server: Server, key: str) -> dict[str, Any]:
    headers = {"authorization": f"Bearer {secret(key)}"}
    answer = server.run(server.http.get("/v1/models", headers=headers))
    return {model["id"]: model.get("softspec") for model in answer.json()["data"]}


@pytest.mark.parametrize("path", [path for path in BODIES if path not in NO_ENSEMBLES])
def test_every_route_answers_to_an_alias_and_a_key_that_may_ask_it_alone(server: Server, path: str) -> None:
    answer = ask(server, path, {**BODIES[path], "model": ALIAS})

    assert answer.status_code == 200, answer.text
    assert answer.json().get("model", NAME) in (NAME, OTHER)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses", "/v1/messages", "/invocations"])
def test_streams_answer_to_an_alias(server: Server, path: str) -> None:
    answer = ask(server, path, {**BODIES[path], "model": ALIAS, "stream": True})

    assert answer.status_code == 200
    assert '"error"' not in answer.text
    assert f'"{NAME}"' in answer.text or f'"{OTHER}"' in answer.text


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"])
def test_one_user_has_one_ensemble_on_every_route(server: Server, path: str) -> None:
    field = {"metadata": {"user_id": "u"}} if path == "/v1/messages" else {"user": "u"}
    body = {**BODIES[path], "model": ALIAS, **field}

    told = {ask(server, path, body).json()["model"] for _ in range(5)}

    assert told == {NAME}


def test_models_lists_the_alias_first_with_its_weights(server: Server) -> None:
    assert next(iter(models(server, "root"))) == ALIAS
    assert models(server, "outer") == {ALIAS: {"alias_of": {NAME: 90, OTHER: 10}}}


def test_ensemble_behind_an_alias_is_not_unloaded(server: Server) -> None:
    answer = ask(server, "/v1/unload_ensemble", {"name": OTHER}, "root")

    assert answer.status_code == 400
    assert "the alias 'my' stands for 'other' too" in answer.json()["error"]["message"]


def test_ensemble_with_the_name_of_an_alias_is_not_loaded(server: Server, folder: Path) -> None:
    named = random_adapters(folder / "tiny-base", folder / "named", num_members=2, name=ALIAS)

    answer = ask(server, "/v1/load_ensemble", {"path": str(named)}, "root")

    assert answer.status_code == 400
    assert "'my' is an alias here" in answer.json()["error"]["message"]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_shadow_goes_through_vllms_handlers_and_nobody_hears_it(
    server: Server, path: str, stream: bool
) -> None:
    headers = {"authorization": f"Bearer {secret('root')}", "x-request-id": "mine"}
    body = {**BODIES[path], "model": FOLLOWED, "stream": stream}

    async def answered() -> float:
        lines = (await server.http.get("/metrics")).text.splitlines()
        counted = f'softspec_shadow_requests_total{{model="{OTHER}",of="{FOLLOWED}",outcome="answered"}} '
        return sum(float(line.removeprefix(counted)) for line in lines if line.startswith(counted))

    async def work() -> str:
        before = await answered()
        answer = await server.http.post(path, json=body, headers=headers)
        async with asyncio.timeout(30):
            while await answered() == before:
                await asyncio.sleep(0)
        assert answer.status_code == 200
        return str(answer.text)

    text = server.run(work())

    assert f'"{NAME}"' in text
    assert f'"{OTHER}"' not in text


def test_admin_changes_an_alias_and_ordinary_keys_do_not_even_see_all_of_them(server: Server) -> None:
    refused = ask(server, "/v1/aliases", {"alias": ALIAS, "weights": {NAME: 1}})
    made = ask(server, "/v1/aliases", {"alias": "new", "weights": {OTHER: 1}}, "root")

    assert (refused.status_code, made.status_code) == (403, 200)
    assert models(server, "root")["new"] == {"alias_of": {OTHER: 1}}
    assert ask(server, "/v1/completions", {"model": "new", "prompt": "a"}, "root").json()["model"] == OTHER
