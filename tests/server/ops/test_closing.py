"""The connections to upstreams end with the server, after whatever else it does then."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from fastapi import FastAPI

from softspec.server.ops.closing import close_upstreams_with
from softspec.server.upstream.settings import UpstreamSettings
from softspec.server.upstream.upstreams import Upstreams
from tests.support.asked_upstream import Watched, asking
from tests.support.scripted_upstream import ScriptedUpstream, answer, chat_answer


def run_to_the_end(app: FastAPI, upstreams: Upstreams | None, fails: bool = False) -> None:
    async def scenario() -> None:
        async with app.router.lifespan_context(app) as state:
            assert state == {"from": "the app"}
            if upstreams is not None:
                app.state.softspec_upstreams = upstreams
                await asking(upstreams["big"])
            if fails:
                raise OSError("the server died")

    asyncio.run(scenario())


def app_with_a_state() -> FastAPI:
    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[dict[str, str]]:
        yield {"from": "the app"}

    app = FastAPI(lifespan=lifespan)
    close_upstreams_with(app)
    return app


@pytest.mark.parametrize("fails", [False, True])
def test_connections_are_closed_when_the_server_ends(fails: bool) -> None:
    with ScriptedUpstream([answer(chat_answer())]) as server:
        settings = {"big": UpstreamSettings(url=server.url, model="m")}
        try:
            run_to_the_end(app_with_a_state(), Upstreams(settings, {}, Watched()), fails)
        except OSError:
            assert fails
        assert server.until(lambda: server.connections == 0)

    assert server.accepted == 1


def test_a_server_without_upstreams_ends_as_before() -> None:
    run_to_the_end(app_with_a_state(), None)
