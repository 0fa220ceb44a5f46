"""A real server as a user starts it: what it says, what a pasted line answers, and what broken directories do to it."""

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import torch
from safetensors.torch import load_file, save_file

from softspec.artefact.fingerprint import fingerprint
from softspec.artefact.manifest import load_manifest, member_dir, save_manifest
from tests.support.other_plugin import other_plugin, was_loaded
from tests.support.real_server import RealServer, softspec_server
from tests.support.tiny import random_adapters, tiny_llama

pytestmark = [pytest.mark.vllm, pytest.mark.slow]

NAME = "law"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("quiet")


@pytest.fixture(scope="module")
def ensemble(folder: Path) -> Path:
    base = tiny_llama(folder / "base")
    made = random_adapters(base, folder / NAME, num_members=2, name=NAME)
    manifest = load_manifest(made)
    trained_on = manifest.base_model.model_copy(update={"fingerprint": fingerprint(str(base))})
    save_manifest(made, manifest.model_copy(update={"base_model": trained_on}))
    return made


@pytest.fixture(scope="module")
def server(folder: Path, ensemble: Path) -> Iterator[RealServer]:
    variables = {**other_plugin(folder / "other"), "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1"}
    unsaid: Any = {"VLLM_LOGGING_LEVEL": None}
    with softspec_server(ensemble, folder / "log", "--max-loras", "4", **variables, **unsaid) as server:
        server.wait_until_ready()
        yield server


@pytest.fixture
def copy(ensemble: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(ensemble, tmp_path / "copy"))


def complaint_about(server: RealServer, directory: Path) -> str:
    """The only line of a refused load, in OpenAI's envelope."""
    body = {"path": str(directory), "replace": True}
    answer = httpx2.post(f"{server.url}/v1/load_ensemble", json=body, timeout=60)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["type"]) == (400, 400, "BadRequestError")
    assert "\n" not in error["message"]
    return error["message"]


def text_of(server: RealServer, model: str = NAME) -> str:
    answer = server.chat(model, max_tokens=8, temperature=0, seed=1)
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"][0]["message"]["content"]


def test_start_says_what_is_served_where_and_with_which_policy_and_nothing_of_vllm(
    server: RealServer,
) -> None:
    begun, *others, served, place, policy, question = server.log.read_text().splitlines()

    assert begun.startswith("softspec: starting vLLM")
    (warning,) = [line for line in others if not line.startswith("softspec is starting vLLM: ")]
    assert "LoRA dynamic loading & unloading is enabled" in warning  # a risk that the variable takes
    assert served.startswith(f"softspec is ready: serves '{NAME}' (2 members")
    assert place == f"  at {server.url}; GET /ready says so too"
    assert policy.startswith("  policy 'answer'")
    assert question.startswith("  curl ")


def test_last_line_answers_when_it_is_pasted(server: RealServer) -> None:
    line = server.log.read_text().splitlines()[-1]

    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=True)

    assert "mutual_information" in json.loads(done.stdout)["choices"][0]["uncertainty"]


def test_requests_are_lines_of_json_on_standard_output_and_no_news_elsewhere(server: RealServer) -> None:
    before = server.log.read_text()

    assert server.get("/v1/nothing") == 404

    assert json.loads(server.requests.read_text().splitlines()[-1])["status"] == 404
    assert server.log.read_text() == before


def test_other_plugins_of_vllm_stay_loaded(server: RealServer, folder: Path) -> None:
    assert server.get("/ready") == 200
    assert was_loaded(folder / "other")


def test_directory_that_vanishes_is_served_on(server: RealServer, ensemble: Path) -> None:
    """Its weights are in the engine, which has room for all that is served."""
    before = [text_of(server), text_of(server, f"{NAME}/member-1")]
    away = ensemble.rename(ensemble.with_name("away"))
    try:
        complaint = complaint_about(server, ensemble)
        after = [text_of(server), text_of(server, f"{NAME}/member-1")]
    finally:
        away.rename(ensemble)

    assert complaint.startswith(f"no ensemble.json in '{ensemble}'")
    assert after == before
    assert server.get("/ready") == 200


@pytest.mark.parametrize("damage", ["cut off", "no number", "no weights", "another shape"])
def test_broken_ensemble_takes_nothing_from_the_one_that_it_was_to_replace(
    server: RealServer, copy: Path, damage: str
) -> None:
    before, said = text_of(server), server.log.read_text()
    weights = member_dir(copy, 1) / "adapter_model.safetensors"
    if damage == "cut off":
        weights.write_bytes(weights.read_bytes()[:-10])
    elif damage == "no weights":
        weights.unlink()
    else:
        change = (lambda t: torch.full_like(t, torch.nan)) if damage == "no number" else (lambda t: t[:, :-1])
        save_file({name: change(t).contiguous() for name, t in load_file(weights).items()}, weights)

    complaint = complaint_about(server, copy)

    assert str(weights.parent) in complaint or "its trial failed" in complaint
    assert text_of(server) == before
    assert server.get("/ready") == 200
    assert server.log.read_text() == said
