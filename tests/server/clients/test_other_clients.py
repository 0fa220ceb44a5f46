"""Other people's clients against a running server: what a user of LangChain or LiteLLM sees of every decision."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.real_server import RealServer

pytestmark = [pytest.mark.vllm, pytest.mark.slow]

TEXT = "Ask a lawyer."


def told_by(script: str, server: RealServer, others: Path) -> Any:
    """What a program found that asks the server with somebody's client."""
    program = Path(__file__).with_name(script)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", program, server.url],
        env={"PATH": "", "PYTHONPATH": str(others), "LITELLM_LOCAL_MODEL_COST_MAP": "True"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_langchain(server: RealServer, others: Path) -> None:
    found = told_by("ask_with_langchain.py", server, others)

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


def test_litellm(server: RealServer, others: Path) -> None:
    found = told_by("ask_with_litellm.py", server, others)

    assert (found["answer"]["decision"], found["abstain"]["decision"]) == ("answer", "abstain")
    assert found["answer"]["text"]
    assert found["answer streamed"]
    assert "at token 1" in found["abstain"]["refusal"]
    assert not found["abstain"]["text"]
    assert not found["abstain streamed"]
    assert (found["route"]["text"], found["route streamed"]) == (TEXT, TEXT)
    assert found["route"]["decision"] == "route"
    assert found["anthropic"]["text"]
