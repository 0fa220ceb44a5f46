"""Ensembles come and go in a running server; vLLM's HTTP layer is real, the engine behind it scripted."""

import asyncio
import re
import shutil
from collections.abc import AsyncGenerator, Coroutine, Iterator
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from softspec.artefact.calibration import Calibration
from softspec.artefact.fingerprint import fingerprint
from softspec.artefact.manifest import load_manifest, member_dir, save_manifest
from softspec.engine.front.client import EnsembleClient
from softspec.engine.front.registry import Registry
from softspec.errors import UnknownModelError
from softspec.server.policy.policy import Policy
from softspec.server.policy.rules import PolicyRules
from tests.support.calibrations import ANSWERS
from tests.support.scripted_vllm import HELLO, NAME, Server, serving
from tests.support.tiny import random_adapters, tiny_llama

pytestmark = pytest.mark.vllm

OTHER = "other"
NOT_LOADED = f"ensemble '{OTHER}' was not loaded: "


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """NAME with two members and OTHER with one; `fresh` has NAME too, with one member and other weights."""
    folder = tmp_path_factory.mktemp("ensembles")
    base = tiny_llama(folder / "tiny-base")
    known = fingerprint(str(base))
    changed(random_adapters(base, folder / NAME, num_members=2, name=NAME), folder / NAME, known)
    random_adapters(base, folder / OTHER, num_members=1, name=OTHER, seed=1)
    random_adapters(base, folder / "fresh", num_members=1, name=NAME, seed=2)
    return folder


@pytest.fixture(scope="module")
def running(folder: Path) -> Iterator[Server]:
    with serving(folder / NAME, "--max-loras", "4", VLLM_ALLOW_RUNTIME_LORA_UPDATING="1") as server:
        yield server


@pytest.fixture
def server(running: Server, folder: Path) -> Iterator[Server]:
    """Room for four adapters, of which NAME has two; after each test it is served alone again."""
    running.engine.began.clear()
    running.engine.loading.clear()
    yield running
    running.engine.unreadable = ""
    running.engine.may_answer.set()
    for name in list(registry(running).ensembles):
        running.post("/v1/unload_ensemble", {"name": name})
    assert load(running, folder / NAME).status_code == 200
    assert set(running.engine.resident.values()) <= engine_names(running)


def registry(server: Server) -> Registry:
    return server.app.state.softspec_registry


def engine_names(server: Server) -> set[str]:
    """What the engine calls the adapters that are served."""
    ensembles = registry(server).ensembles.values()
    return {adapter.name for ensemble in ensembles for adapter in ensemble.adapters}


def load(server: Server, directory: Path, **fields: Any) -> Any:
    return server.post("/v1/load_ensemble", {"path": str(directory), **fields})


def complaint(answer: Any) -> str:
    """The message of a 400 in OpenAI's envelope."""
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["type"]) == (400, 400, "BadRequestError")
    return error["message"]


def models(server: Server) -> list[str]:
    return [model["id"] for model in server.get("/v1/models").json()["data"]]


def while_answering(server: Server, model: str, change: Coroutine[Any, Any, Any], **fields: Any) -> Any:
    """A chat answer during which `change` happened from beginning to end, and what came of `change`."""

    async def work() -> Any:
        server.engine.may_answer.clear()
        request = {"model": model, "messages": HELLO, **fields}
        answer = asyncio.create_task(server.http.post("/v1/chat/completions", json=request))
        await server.engine.began.wait()
        result = await change
        server.engine.may_answer.set()
        return await answer, result

    return server.run(work())


def members_of(answer: Any) -> int:
    return len(answer.json()["choices"][0]["uncertainty"]["member_weights"])


def test_loaded_ensemble_answers_without_a_restart(server: Server, folder: Path) -> None:
    answer = load(server, folder / OTHER)

    assert (answer.status_code, answer.text) == (200, f"Success: ensemble '{OTHER}' added successfully.")
    assert models(server) == [
        NAME,
        OTHER,
        f"{NAME}/member-0",
        f"{NAME}/member-1",
        f"{OTHER}/member-0",
        "tiny-base",
    ]
    assert len(server.chat(model=OTHER).choices[0].uncertainty["member_weights"]) == 1
    assert server.chat(model=f"{OTHER}/member-0").choices[0].message.content
    server.wait_until_ready()


def test_loaded_ensemble_is_counted_from_zero(server: Server, folder: Path) -> None:
    load(server, folder / OTHER)

    page = server.get("/metrics").text

    assert f'softspec_lockstep_errors_total{{model="{OTHER}"}} 0.0' in page
    assert f'softspec_group_preemptions_total{{model="{OTHER}/member-0"}} 0.0' in page


def test_weights_are_in_the_engine_before_the_name_is_served(server: Server, folder: Path) -> None:
    async def models_during_and_after() -> list[bool]:
        server.engine.may_load.clear()
        request = server.http.post("/v1/load_ensemble", json={"path": str(folder / OTHER)})
        loading = asyncio.create_task(request)
        await server.engine.loading.wait()
        during = OTHER in registry(server).lora_requests
        server.engine.may_load.set()
        await loading
        return [during, OTHER in registry(server).lora_requests]

    assert server.run(models_during_and_after()) == [False, True]
    assert (
        engine_names(server) >= {name for name in server.engine.resident.values() if OTHER in name} != set()
    )


def test_served_name_is_replaced_only_on_request(server: Server, folder: Path) -> None:
    before = engine_names(server)

    message = complaint(load(server, folder / "fresh"))

    assert (
        message
        == f"The ensemble '{NAME}' has already been loaded. If you want to replace it, set 'replace' to true."
    )
    assert engine_names(server) == before


@pytest.mark.parametrize("stream", [False, True])
def test_request_that_has_begun_is_finished_on_the_old_members(
    server: Server, folder: Path, stream: bool
) -> None:
    old = engine_names(server)
    change = server.http.post("/v1/load_ensemble", json={"path": str(folder / "fresh"), "replace": True})

    async def replaced_and_resident() -> tuple[Any, set[str]]:
        return await change, set(server.engine.resident.values())

    answer, (loaded, resident) = while_answering(server, NAME, replaced_and_resident(), stream=stream)

    assert loaded.status_code == answer.status_code == 200
    assert resident >= old
    assert len(resident) == 3
    weights = answer.text.split('"member_weights":')[1].split("]")[0]
    assert weights.count(",") == 1
    assert members_of(server.post("/v1/chat/completions", {"model": NAME, "messages": HELLO})) == 1
    assert set(server.engine.resident.values()) == engine_names(server)
    assert f"{NAME}/member-1" not in models(server)


def test_same_directory_again_has_other_names_and_numbers_in_the_engine(server: Server, folder: Path) -> None:
    """By name and path vLLM's prefix cache would find the blocks of the old weights."""
    old = registry(server).ensembles[NAME].adapters

    load(server, folder / NAME, replace=True)

    new = registry(server).ensembles[NAME].adapters
    assert [adapter.path for adapter in new] == [adapter.path for adapter in old]
    assert min(adapter.int_id for adapter in new) > max(adapter.int_id for adapter in old)
    assert not {adapter.name for adapter in new} & {adapter.name for adapter in old}


def test_unloaded_ensemble_finishes_what_it_began_and_leaves(server: Server) -> None:
    unload = server.http.post("/v1/unload_ensemble", json={"name": NAME})

    async def unloaded_and_models() -> tuple[Any, Any]:
        return await unload, (await server.http.get("/v1/models")).json()["data"]

    answer, (unloaded, listed) = while_answering(server, NAME, unloaded_and_models())

    assert (unloaded.status_code, unloaded.text) == (200, f"Success: ensemble '{NAME}' removed successfully.")
    assert [model["id"] for model in listed] == ["tiny-base"]
    assert members_of(answer) == 2
    assert not server.engine.resident
    asked = server.post("/v1/chat/completions", {"model": NAME, "messages": HELLO})
    assert (asked.status_code, asked.json()["error"]["type"]) == (404, "NotFoundError")
    assert server.chat(model="tiny-base").choices[0].message.content
    server.wait_until_ready()


def test_member_keeps_its_ensemble_in_the_engine(server: Server) -> None:
    async def unload() -> int:
        await server.http.post("/v1/unload_ensemble", json={"name": NAME})
        return len(server.engine.resident)

    answer, resident = while_answering(server, f"{NAME}/member-1", unload())

    assert answer.status_code == 200
    assert resident > 0
    assert not server.engine.resident


def test_unknown_name_cannot_be_unloaded(server: Server) -> None:
    answer = server.post("/v1/unload_ensemble", {"name": f"{NAME}/member-0"})

    assert answer.status_code == 404
    assert answer.json()["error"]["message"] == f"The ensemble '{NAME}/member-0' cannot be found."


def test_client_that_leaves_ends_its_request(server: Server) -> None:
    async def leave() -> None:
        server.engine.may_answer.clear()
        async with aclosing(ask(server)) as outputs:
            reading = asyncio.create_task(anext(outputs))
            await server.engine.began.wait()
            await registry(server).unload(NAME)
            assert server.engine.resident
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
        await registry(server).settle()

    server.run(leave())

    assert not server.engine.resident


def test_request_that_never_began_keeps_nothing(server: Server) -> None:
    """The client may go before the first output is asked for; then no one would say that the request is over."""

    async def begin_too_late() -> None:
        outputs = ask(server)
        await registry(server).unload(NAME)
        await registry(server).settle()
        assert not server.engine.resident
        with pytest.raises(UnknownModelError, match=f"`{NAME}` does not exist"):
            await anext(outputs)

    server.run(begin_too_late())


def ask(server: Server) -> AsyncGenerator[Any, None]:
    from vllm.sampling_params import SamplingParams

    client: EnsembleClient = server.app.state.openai_serving_chat.engine_client
    return client.generate(
        {"prompt_token_ids": [5]},
        SamplingParams(max_tokens=3),
        "request",
        lora_request=registry(server).lora_requests[NAME],
    )


def test_one_unreadable_member_leaves_everything_as_it_was(server: Server, folder: Path) -> None:
    load(server, folder / "fresh", replace=True)
    before, resident = engine_names(server), dict(server.engine.resident)
    server.engine.unreadable = f"{NAME}/member-1"

    message = complaint(load(server, folder / NAME, replace=True))

    assert message.startswith(f"ensemble '{NAME}' was not loaded: ")
    assert message.endswith("member-1 is cut off")
    assert (engine_names(server), server.engine.resident) == (before, resident)
    assert server.chat().choices[0].message.content


def test_cut_off_member_leaves_everything_as_it_was(server: Server, folder: Path, tmp_path: Path) -> None:
    damaged = changed(folder / OTHER, tmp_path / "damaged")
    weights = member_dir(damaged, 0) / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    resident = dict(server.engine.resident)

    message = complaint(load(server, damaged))

    assert message.startswith(f"{NOT_LOADED}'{weights}' cannot be read")
    assert server.engine.resident == resident


def test_ensemble_that_cannot_answer_is_not_served(server: Server, folder: Path) -> None:
    """Nobody could have asked it while it was tried, and the one that it was to replace answers on."""
    before, resident = engine_names(server), dict(server.engine.resident)
    server.engine.broken = "a failure"
    try:
        message = complaint(load(server, folder / "fresh", replace=True))
    finally:
        server.engine.broken = None

    assert message.startswith(f"ensemble '{NAME}' was not loaded: its trial failed: ")
    assert (engine_names(server), server.engine.resident) == (before, resident)
    assert members_of(server.post("/v1/chat/completions", {"model": NAME, "messages": HELLO})) == 2


def test_new_ensemble_is_tried_before_it_is_served(server: Server, folder: Path) -> None:
    async def models_during_its_trial() -> list[str]:
        server.engine.tried.clear()
        server.engine.may_be_tried.clear()
        request = server.http.post("/v1/load_ensemble", json={"path": str(folder / OTHER)})
        loading = asyncio.create_task(request)
        await server.engine.tried.wait()
        during = (await server.http.get("/v1/models")).json()["data"]
        server.engine.may_be_tried.set()
        await loading
        return [model["id"] for model in during]

    assert OTHER not in server.run(models_during_its_trial())
    assert OTHER in models(server)


def test_adapters_that_did_not_leave_keep_their_room_only_until_they_do(
    server: Server, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """There is room for four; two that are stuck and three new ones are too many."""
    server.engine.stuck = True
    server.post("/v1/unload_ensemble", {"name": NAME})
    server.run(registry(server).settle())
    assert f"adapters of ensemble '{NAME}' did not leave the engine" in caplog.text
    with patch.object(server.engine.vllm_config.lora_config, "max_cpu_loras", 2):
        assert "the engine keeps 2 adapters" in complaint(load(server, folder / OTHER))

        server.engine.stuck = False
        assert load(server, folder / OTHER).status_code == 200

    assert set(server.engine.resident.values()) == engine_names(server)


def test_adapters_that_the_engine_has_not_leave_without_a_word(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    server.engine.resident.clear()

    assert server.post("/v1/unload_ensemble", {"name": NAME}).status_code == 200
    server.run(registry(server).settle())

    assert caplog.records == []


@pytest.mark.parametrize(
    ("part", "field", "limit", "reason"),
    [
        ("lora_config", "max_lora_rank", 2, "has 4 LoRA rank but the engine allows 2: .* --max-lora-rank 4"),
        ("lora_config", "max_cpu_loras", 2, "have 3 members but the engine keeps 2 .* --max-loras 3, or"),
        ("scheduler_config", "max_num_seqs", 1, "2 rows but the engine allows 1: .* --max-num-seqs 2"),
        ("model_config", "max_logprobs", 7, "8 log-probability columns .* --max-logprobs 8"),
        ("cache_config", "num_gpu_blocks", 9, "the KV cache has room for .* --max-model-len"),
    ],
)
def test_engine_too_small_refuses_before_anything_changes(
    server: Server, folder: Path, part: str, field: str, limit: int, reason: str
) -> None:
    resident = dict(server.engine.resident)

    with patch.object(getattr(server.engine.vllm_config, part), field, limit):
        answer = load(server, folder / OTHER)

    assert re.match(NOT_LOADED + ".*" + reason, complaint(answer))
    assert server.engine.resident == resident
    assert OTHER not in models(server)


def test_members_that_still_answer_take_their_room(server: Server, folder: Path) -> None:
    async def replace_twice() -> list[Any]:
        body = {"path": str(folder / NAME), "replace": True}
        return [await server.http.post("/v1/load_ensemble", json=body) for _ in range(2)]

    _, (first, second) = while_answering(server, NAME, replace_twice())

    assert first.status_code == 200
    assert complaint(second).endswith("; or try again later: 1 replaced or unloaded still answer")
    assert load(server, folder / NAME, replace=True).status_code == 200


def test_second_load_waits_for_the_first(server: Server, folder: Path) -> None:
    async def load_twice() -> list[Any]:
        body = {"path": str(folder / OTHER)}
        return await asyncio.gather(*(server.http.post("/v1/load_ensemble", json=body) for _ in range(2)))

    answers = server.run(load_twice())

    assert sorted(answer.status_code for answer in answers) == [200, 400]
    assert sum(OTHER in name for name in server.engine.resident.values()) == 1


def changed(ensemble: Path, copy: Path, fingerprint: str | None = None, **changes: Any) -> Path:
    """A copy of an ensemble that says something else of itself."""
    if copy != ensemble:
        shutil.copytree(ensemble, copy)
    manifest = load_manifest(copy)
    base = manifest.base_model.model_copy(update={"fingerprint": fingerprint})
    save_manifest(copy, manifest.model_copy(update={"base_model": base, **changes}))
    return copy


def test_ensemble_of_another_base_is_refused(server: Server, folder: Path, tmp_path: Path) -> None:
    stranger = changed(folder / OTHER, tmp_path / "stranger", fingerprint="b" * 64)
    real = fingerprint(str(folder / "tiny-base"))
    kin = changed(folder / OTHER, tmp_path / "kin", fingerprint=real)

    message = complaint(load(server, stranger))

    assert f"fingerprint bbbbbbbbbbbb ('{folder / 'tiny-base'}') but {real[:12]} is served" in message
    assert load(server, kin).status_code == 200


@pytest.mark.parametrize("name", ["tiny-base", f"{NAME}/member-0"])
def test_name_of_another_model_is_refused(server: Server, folder: Path, tmp_path: Path, name: str) -> None:
    message = complaint(load(server, changed(folder / OTHER, tmp_path / "copy", name=name), replace=True))

    assert message.startswith(f"model name '{name}' is taken by the base or another ensemble")


def test_directory_without_an_ensemble_is_refused(server: Server, tmp_path: Path) -> None:
    assert complaint(load(server, tmp_path)).startswith(f"no ensemble.json in '{tmp_path}'")


@pytest.mark.parametrize("body", [{}, {"path": "x", "replcae": True}, {"path": 3}])
def test_body_that_says_something_else_is_refused(server: Server, body: dict[str, Any]) -> None:
    assert server.post("/v1/load_ensemble", body).status_code == 400


@pytest.mark.parametrize("route", ["load_lora_adapter", "unload_lora_adapter"])
def test_single_adapters_are_refused_beside_ensembles(server: Server, route: str) -> None:
    answer = server.post(f"/v1/{route}", {"lora_name": f"{NAME}/member-0", "lora_path": "anywhere"})

    assert "use /v1/load_ensemble instead" in complaint(answer)
    assert f"{NAME}/member-0" in models(server)


def calibrated(directory: Path, calibration: Calibration | None) -> Path:
    manifest = load_manifest(directory)
    save_manifest(directory, manifest.model_copy(update={"calibration": calibration}))
    return directory


def test_calibration_takes_effect_with_the_ensemble_that_has_it(server: Server, folder: Path) -> None:
    flat = ANSWERS.model_copy(update={"curve": ((0.0, 0.5),)})
    target = {"policy": {"action": "abstain", "threshold": {"target_error": 0.05}}}

    def told() -> tuple[Any, Any]:
        answer = server.post("/v1/chat/completions", {"model": NAME, "messages": HELLO})
        card = server.get("/v1/models").json()["data"][0]
        return answer.json()["choices"][0]["uncertainty"]["confidence"], card["softspec"]["calibrated"]

    assert told() == (None, False)
    try:
        load(server, calibrated(folder / "fresh", flat), replace=True)
        assert told() == (0.5, True)
        request = {"model": NAME, "messages": HELLO, "uncertainty": target}
        assert server.post("/v1/chat/completions", request).status_code == 200
    finally:
        calibrated(folder / "fresh", None)


def test_ensemble_that_cannot_follow_the_servers_policy_is_not_loaded(server: Server, folder: Path) -> None:
    chat = server.app.state.softspec_chat
    rules = PolicyRules(Policy("abstain", "confidence", 0.5))

    with patch.object(server.app.state, "softspec_chat", replace(chat, rules=rules)):
        answer = load(server, folder / OTHER)

    assert f"ensemble '{OTHER}' cannot be served: policy metric 'confidence' needs" in complaint(answer)
    assert OTHER not in models(server)
