"""Metrics and docs at a port of their own: on real sockets, around the scripted engine."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx2
import pytest
from fastapi import FastAPI

from softspec.app.child_server import free_port
from softspec.errors import ConfigError
from softspec.server.access.second_port import require_free
from softspec.server.access.settings import AccessSettings
from tests.support.fake_engine import AGREED, FakeEngine, make_app
from tests.support.key_files import key_file

OPS = ("/metrics", "/docs", "/redoc", "/openapi.json")


def app_with(settings: AccessSettings) -> FastAPI:
    app = make_app(FakeEngine([AGREED]), access=settings)
    for path in ("/metrics", "/health", "/ready", "/v1/models"):
        app.add_api_route(path, lambda: "here", methods=["GET"])
    return app


@asynccontextmanager
async def started(app: FastAPI, port: int) -> AsyncIterator[tuple[httpx2.AsyncClient, httpx2.AsyncClient]]:
    """Clients of a server that runs: of its own port and of the second one."""
    at_first = httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://first")
    at_second = httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False)
    async with at_first, at_second, app.router.lifespan_context(app):
        yield at_first, at_second


async def statuses(client: httpx2.AsyncClient, *paths: str) -> list[int]:
    return [(await client.get(path)).status_code for path in paths]


def test_what_operators_look_at_is_at_the_second_port_and_nowhere_else() -> None:
    async def scenario() -> None:
        port = free_port()
        async with started(app_with(AccessSettings(ops_port=port)), port) as (first, second):
            assert await statuses(second, *OPS, "/health", "/ready") == [200] * 6
            assert await statuses(second, "/v1/models", "/nothing") == [404] * 2
            assert await statuses(first, *OPS) == [404] * 4
            assert await statuses(first, "/health", "/ready", "/v1/models") == [200] * 3
            assert (await first.get("/metrics")).json()["error"][
                "message"
            ] == "/metrics is not served at this port: ask that of --ops-port"

    asyncio.run(scenario())


def test_second_port_needs_no_key_unless_asked(tmp_path: Path) -> None:
    async def scenario(protect_ops: bool) -> list[int]:
        port = free_port()
        settings = AccessSettings(ops_port=port, keys=key_file(tmp_path, mine={}), protect_ops=protect_ops)
        async with started(app_with(settings), port) as (_, second):
            return await statuses(second, "/metrics", "/health")

    assert asyncio.run(scenario(False)) == [200, 200]
    assert asyncio.run(scenario(True)) == [401, 200]


def test_second_port_is_closed_when_the_server_ends() -> None:
    async def scenario() -> None:
        port = free_port()
        async with started(app_with(AccessSettings(ops_port=port)), port) as (_, second):
            await second.get("/health")
        socket.create_server(("127.0.0.1", port)).close()

    asyncio.run(scenario())


def test_port_that_is_taken_ends_the_start() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]

        with pytest.raises(
            ConfigError, match=f"--ops-port {port}: cannot listen: Address already in use; give"
        ):
            require_free("127.0.0.1", port, 8000)


def test_port_of_the_models_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="--ops-port is 8000, where callers ask: give another one"):
        require_free(None, 8000, 8000)
