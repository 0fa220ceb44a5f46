"""Other people's clients against a running server: what a user of LangChain or LiteLLM sees of every decision."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from softspec.artefact.activation import BlockActivation
from tests.support.real_server import RealServer, softspec_server
from tests.support.scripted_upstream import Request, ScriptedUpstream, answer, chat_answer, chat_stream
from tests.support.tiny import random_adapters

pytestmark = [pytest.mark.vllm, pytest.mark.slow]

CLIENTS = Path(sys.prefix) / "clients"
TEXT = "Ask a lawyer."
TOOLS = ("--enable-auto-tool-choice", "--tool-call-parser", "hermes")


async def lawyer(request: Request) -> bool:
    """An upstream that always says TEXT, streamed or whole."""
    script = chat_stream(TEXT) if request.body.get("stream") else answer(chat_answer(TEXT))
    return await script(request)


@pytest.fixture(scope="module")
def server(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealServer]:
    folder = tmp_path_factory.mktemp("clients")
    ensemble = random_adapters(
        tiny_base, folder / "law", num_members=2, activation=BlockActivation(), name="law"
    )
    with ScriptedUpstream([lawyer]) as upstream:
        flags = ("--upstream", f"lawyer={upstream.url}", *TOOLS)
        with softspec_server(ensemble, folder / "log", *flags) as server:
            server.wait_until_ready()
            yield server


def told_by(script: str, server: RealServer) -> Any:
    """What a program found that asks the server with somebody's client."""
    assert CLIENTS.is_dir(), f"no {CLIENTS}: run these tests with 'make test'"
    program = Path(__file__).with_name(script)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", program, server.url],
        env={"PATH": "", "PYTHONPATH": str(CLIENTS), "LITELLM_LOCAL_MODEL_COST_MAP": "True"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_langchain(server: RealServer) -> None:
    found = told_by("ask_with_langchain.py", server)

    assert found["answer"]["text"]
    assert found["answer streamed"]
    assert found["answer"]["headers"]["x-softspec-decision"] == "answer"
    assert (found["abstain"]["text"], found["abstain streamed"]) == ("", "")
    assert "at token 1" in found["abstain"]["refusal"]
    assert found["abstain"]["headers"]["x-softspec-decision"] == "abstain"
    assert found["parsing error"] == "OpenAIRefusalError"
    assert (found["route"]["text"], found["route streamed"]) == (TEXT, TEXT)
    assert found["route"]["headers"]["x-softspec-decision"] == "route"
    assert found["route"]["headers"]["x-softspec-upstream"] == "lawyer"
    assert found["responses"]["text"]
    assert found["anthropic"]["text"]


def test_litellm(server: RealServer) -> None:
    found = told_by("ask_with_litellm.py", server)

    assert (found["answer"]["decision"], found["abstain"]["decision"]) == ("answer", "abstain")
    assert found["answer"]["text"]
    assert found["answer streamed"]
    assert "at token 1" in found["abstain"]["refusal"]
    assert not found["abstain"]["text"]
    assert not found["abstain streamed"]
    assert (found["route"]["text"], found["route streamed"]) == (TEXT, TEXT)
    assert found["route"]["decision"] == "route"
    assert found["anthropic"]["text"]
