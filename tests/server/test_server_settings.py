"""Settings from a file and flags, through the environment, in the routes of a running server."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from softspec.server.ops.settings import CARRIED, Flags, read_settings
from tests.support.scripted_core import Said, ScriptedAsyncLLM
from tests.support.scripted_vllm import HELLO, NAME, Server, serving
from tests.support.tiny import random_adapters, tiny_llama

pytestmark = pytest.mark.vllm

FILE = """
policy: {action: abstain, metric: max_epistemic, threshold: 0.5}
allowed_actions: [abstain, route]
upstreams: {big: {url: "http://127.0.0.1:9/v1", model: m, max_retries: 5}}
record: rows.jsonl
"""
UNSURE = [Said("a"), Said("b"), Said("c", 0.9), Said("d")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("settings")


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    ensemble = random_adapters(tiny_llama(folder / "tiny-base"), folder / "ensemble", num_members=2)
    (folder / "server.yaml").write_text(FILE)
    flags = Flags({"threshold": 0.4}, upstreams=("big=max_retries=0",))
    settings = read_settings([ensemble], {}, flags, folder / "server.yaml")
    carried = settings.to_environment()[CARRIED]
    with serving(ensemble, engine_of=ScriptedAsyncLLM, SOFTSPEC_SETTINGS=carried) as server:
        server.engine.play(UNSURE)
        server.wait_until_ready()
        yield server


def asked(server: Server, policy: dict[str, Any]) -> Any:
    server.engine.play(UNSURE)
    body = {"model": NAME, "messages": HELLO, "max_tokens": 4, "uncertainty": {"policy": policy}}
    return server.post("/v1/chat/completions", body)


def test_flag_won_over_the_file(server: Server) -> None:
    choice = asked(server, {}).json()["choices"][0]

    assert choice["uncertainty"]["reason"] == "max_epistemic 0.90 > 0.40 at token 3"


def test_limit_of_the_file_holds_in_requests(server: Server) -> None:
    answer = asked(server, {"action": "answer"})

    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, "uncertainty.policy.action")
    assert error["message"].endswith("'answer' is not allowed: expected one of abstain, route")


def test_request_routes_to_the_only_upstream_of_the_file_and_is_recorded(
    server: Server, folder: Path
) -> None:
    """Nobody listens there, so the answer is withheld, as on_failure is by default."""
    choice = asked(server, {"action": "route"}).json()["choices"][0]

    assert choice["uncertainty"]["decision"] == "abstain"
    assert "at token 3; upstream 'big' cannot be reached" in choice["uncertainty"]["reason"]
    assert (folder / "rows.jsonl").exists()


def test_what_must_stay_at_zero_is_shown_for_every_model_from_the_start(server: Server) -> None:
    page = server.get("/metrics").text

    for model in (NAME, f"{NAME}/member-0", f"{NAME}/member-1"):
        assert f'softspec_lockstep_errors_total{{model="{model}"}} 0.0' in page
