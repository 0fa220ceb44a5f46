"""The connections to upstreams and the record end with the server, before its state does."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
from fastapi import FastAPI
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from softspec.server.ops.closing import close_with
from softspec.server.record.recorder import Recorder
from softspec.server.record.rows import Row
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
        del _app.state  # as vLLM's does

    app = FastAPI(lifespan=lifespan)
    close_with(app)
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


def test_rows_that_wait_are_written_before_the_server_is_gone(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "rows.jsonl", 10**6, 1)

    async def scenario() -> None:
        app = app_with_a_state()
        async with app.router.lifespan_context(app):
            app.state.softspec_recorder = recorder
            for number in range(100):
                recorder.keep("law", partial(Row, {"number": number}, True))

    asyncio.run(scenario())

    assert len((tmp_path / "rows.jsonl").read_text().splitlines()) == 100


def test_spans_that_wait_are_sent() -> None:
    sent, provider = InMemorySpanExporter(), TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(sent, schedule_delay_millis=3_600_000))
    app = app_with_a_state()
    app.state.softspec_traces = provider
    close_with(app)

    provider.get_tracer("softspec").start_span("chat my").end()
    run_to_the_end(app, None)

    assert [span.name for span in sent.get_finished_spans()] == ["chat my"]
