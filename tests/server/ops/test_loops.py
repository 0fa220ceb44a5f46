"""A request that this server sent on, and that comes back, ends here."""

import asyncio
import os
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import httpx2
import pytest
import uvicorn
from fastapi import FastAPI, Request

from softspec.app.child_server import free_port
from softspec.errors import ConfigError, UpstreamError
from softspec.server.ops.closing import close_with
from softspec.server.ops.errors import respond_to_error
from softspec.server.ops.launch import serve
from softspec.server.ops.loops import RefuseLoops
from softspec.server.ops.settings import Settings
from softspec.server.upstream.settings import UpstreamSettings
from softspec.server.upstream.upstreams import Upstreams
from tests.support.asked_upstream import ASKED, Watched
from tests.support.scripted_upstream import CHAT, ScriptedUpstream, answer, chat_answer


@contextmanager
def routing_server(upstream_url: str, port: int | None = None) -> Iterator[tuple[str, list[str]]]:
    """A server that sends every request on to its upstream; its address, and what came in."""
    app, came = FastAPI(), []
    bound = socket.create_server(("127.0.0.1", port or 0))
    url = f"http://127.0.0.1:{bound.getsockname()[1]}/v1"
    settings = {"big": UpstreamSettings(url=upstream_url, model="m", max_retries=0, timeout_s=10)}
    app.state.softspec_upstreams = Upstreams(settings, {}, Watched())
    app.add_middleware(RefuseLoops)
    close_with(app)
    app.add_exception_handler(UpstreamError, respond_to_error)

    @app.post("/v1/chat/completions")
    async def route(request: Request) -> object:
        came.append(request.headers.get("x-softspec-via", ""))
        return await app.state.softspec_upstreams["big"].ask(CHAT, await request.json(), request.headers)

    server = uvicorn.Server(uvicorn.Config(app, log_level="error"))
    thread = threading.Thread(target=lambda: asyncio.run(server.serve([bound])), daemon=True)
    thread.start()
    try:
        while not server.started:
            time.sleep(0.01)
        yield url, came
    finally:
        server.should_exit = True
        thread.join(10)
        bound.close()


def ask(url: str) -> httpx2.Response:
    return httpx2.post(url + CHAT, json=ASKED, timeout=20)


def test_a_server_that_is_its_own_upstream_asks_itself_once() -> None:
    port = free_port()
    with routing_server(f"http://127.0.0.1:{port}/v1", port) as (url, came):
        found = ask(url)

    assert came == [""]
    assert found.status_code == 502
    assert (
        "upstream 'big' answered with status 508: this request was routed here"
        in found.json()["error"]["message"]
    )


def test_two_servers_that_are_each_others_upstreams_ask_each_other_once() -> None:
    port = free_port()
    with (
        routing_server(f"http://127.0.0.1:{port}/v1") as (first, came_to_first),
        routing_server(first, port) as (_, came_to_second),
    ):
        found = ask(first)

    assert found.status_code == 502
    assert (len(came_to_first), len(came_to_second)) == (1, 1)


def test_a_server_behind_another_is_no_loop() -> None:
    with (
        ScriptedUpstream([answer(chat_answer("Ja"))]) as last,
        routing_server(last.url) as (second, _),
        routing_server(second) as (first, _),
    ):
        found = ask(first)

    assert found.json() == chat_answer("Ja")
    assert len(last.requests[0].headers["x-softspec-via"].split(", ")) == 2


@pytest.mark.parametrize(("via", "status"), [("a, b, c", 200), ("a, b, c, d", 508)])
def test_a_row_of_servers_has_an_end(via: str, status: int) -> None:
    with ScriptedUpstream([answer(chat_answer())]) as last, routing_server(last.url) as (url, _):
        found = httpx2.post(url + CHAT, json=ASKED, headers={"x-softspec-via": via})

    assert found.status_code == status


@pytest.mark.vllm
@pytest.mark.parametrize("host", [(), ("--host", "127.0.0.1")], ids=["everywhere", "one address"])
def test_a_start_with_oneself_as_upstream_is_refused_before_the_engine(
    host: Sequence[str], tiny_ensembles: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from softspec.engine.start import serve as start

    def start_engine(*_: object) -> None:
        raise AssertionError("an engine was started")

    monkeypatch.setattr(start.AsyncLLM, "from_vllm_config", start_engine)
    port = free_port()
    back = {"big": UpstreamSettings(url=f"http://localhost:{port}", model="m")}

    with (
        patch.dict(os.environ),
        pytest.raises(ConfigError, match=f"upstream 'big' points back at this server, .* port {port}"),
    ):
        serve(Settings((tiny_ensembles["always-2"],), upstreams=back), None, [*host, "--port", str(port)], 30)


def test_a_server_without_upstreams_takes_everything() -> None:
    app = FastAPI()
    app.add_middleware(RefuseLoops)

    @app.post("/x")
    async def route() -> str:
        return "taken"

    async def scenario() -> httpx2.Response:
        async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app=app), base_url="http://s") as http:
            return await http.post("/x", headers={"x-softspec-via": "a, b, c, d, e"})

    assert asyncio.run(scenario()).json() == "taken"
