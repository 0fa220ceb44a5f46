"""One running server for all who ask it, with an upstream that always answers."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from softspec.artefact.activation import BlockActivation
from tests.support.real_server import RealServer, softspec_server
from tests.support.scripted_upstream import Request, ScriptedUpstream, answer, chat_answer, chat_stream
from tests.support.tiny import random_adapters

CLIENTS = Path(sys.prefix) / "clients"
LAWYER = "Ask a lawyer."
TOOLS = ("--enable-auto-tool-choice", "--tool-call-parser", "hermes")


async def lawyer(request: Request) -> bool:
    """An upstream that always says LAWYER, streamed or whole."""
    script = chat_stream(LAWYER) if request.body.get("stream") else answer(chat_answer(LAWYER))
    return await script(request)


@pytest.fixture(scope="package")
def server(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealServer]:
    folder = tmp_path_factory.mktemp("clients")
    ensemble = random_adapters(
        tiny_base, folder / "law", num_members=2, activation=BlockActivation(), name="law"
    )
    with ScriptedUpstream([lawyer]) as upstream:
        flags = ("--upstream", f"lawyer={upstream.url},model=big-1", *TOOLS)
        with softspec_server(ensemble, folder / "log", *flags) as server:
            server.wait_until_ready()
            yield server


@pytest.fixture(scope="session")
def others() -> Path:
    """Where other people's clients are installed."""
    assert CLIENTS.is_dir(), f"no {CLIENTS}: run these tests with 'make test'"
    return CLIENTS
