"""Who wants an answer no longer stops paying for it: the upstream sees its connection close, and nothing is left."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from softspec.server.upstream.client import Upstream
from tests.support.asked_upstream import ASKED, Watched, all_chunks, asking, with_upstream
from tests.support.scripted_upstream import (
    CHAT,
    Script,
    ScriptedUpstream,
    answer,
    chat_answer,
    chat_chunk,
    chat_stream,
    error,
    event,
    hang,
    response,
)

CHUNK = event(chat_chunk("Ja"))
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
BEGUN = HEAD + f"{len(CHUNK):x}\r\n".encode() + CHUNK + b"\r\n"


async def cancelled(call: Awaitable[Any], after: Callable[[], bool]) -> None:
    """Begin a call, and cancel it once something is so."""
    task = asyncio.ensure_future(call)
    while not after():
        await asyncio.sleep(0.005)
    await asyncio.sleep(0.02)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.parametrize(
    ("way", "script"),
    [
        (asking, hang()),
        (asking, hang(response(b" " * 1000)[:-500])),
        (all_chunks, hang()),
        (all_chunks, hang(HEAD)),
        (all_chunks, hang(BEGUN)),
    ],
    ids=["whole", "whole, begun", "streamed", "streamed, head", "streamed, begun"],
)
def test_cancelling_closes_the_connection_at_once(way: Any, script: Script) -> None:
    watch = Watched()
    with ScriptedUpstream([script]) as server:

        async def use(upstream: Upstream) -> float:
            await cancelled(way(upstream), lambda: len(server.requests) == 1)
            return time.monotonic()

        ended = with_upstream(server.url, use, watch)
        assert server.until(lambda: server.requests[0].left_at is not None)

    left_at = server.requests[0].left_at
    assert left_at is not None
    assert left_at - ended < 1
    assert watch.outcomes == ["cancelled"]


def test_closing_a_stream_closes_the_connection_at_once() -> None:
    watch = Watched()
    with ScriptedUpstream([hang(BEGUN)]) as server:

        async def use(upstream: Upstream) -> bool:
            chunks = upstream.stream(CHAT, ASKED)
            assert await anext(chunks) == chat_chunk("Ja")
            await chunks.aclose()
            return await asyncio.to_thread(server.until, lambda: server.requests[0].left_at is not None)

        assert with_upstream(server.url, use, watch)

    assert watch.outcomes == ["cancelled"]


def test_leaving_a_loop_over_a_stream_closes_the_connection() -> None:
    """Nobody closes the generator by hand; the event loop does when it is gone."""
    with ScriptedUpstream([hang(BEGUN)]) as server:

        async def use(upstream: Upstream) -> bool:
            async for _ in upstream.stream(CHAT, ASKED):
                break
            return await asyncio.to_thread(server.until, lambda: server.requests[0].left_at is not None)

        assert with_upstream(server.url, use)


def test_cancelling_in_a_pause_ends_it() -> None:
    watch = Watched()
    with ScriptedUpstream([error(429, headers={"retry-after": "60"})]) as server:
        began = time.monotonic()
        with_upstream(
            server.url, lambda upstream: cancelled(asking(upstream), lambda: len(server.requests) == 1), watch
        )

    assert time.monotonic() - began < 2
    assert len(server.requests) == 1
    assert watch.outcomes == ["cancelled"]


def test_cancelled_calls_leave_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """200 of them, at every point of a call, over a pool of four connections; then the pool still has all four."""
    from softspec.server.upstream import upstreams

    monkeypatch.setattr(upstreams, "LIMITS", upstreams.httpx2.Limits(max_connections=4))
    watch = Watched()
    slow = [chat_stream("a", "b", pause_s=0.003)] * 200
    with ScriptedUpstream([*slow, answer(chat_answer())]) as server:

        async def use(upstream: Upstream) -> list[Any]:
            tasks = []
            for number in range(200):
                tasks.append(asyncio.ensure_future(all_chunks(upstream)))
                await asyncio.sleep(0.0002 * (number % 20))
                tasks[number - number % 3].cancel()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            server.scripts = [answer(chat_answer(), headers={"connection": "keep-alive"})]
            return await asyncio.gather(*(asking(upstream) for _ in range(12)))

        found = with_upstream(server.url, use, watch, timeout_s=5)
        assert server.until(lambda: server.connections == 0)

    assert found == [chat_answer()] * 12
    assert watch.circuit == [False]
    assert len(watch.outcomes) == 212
    assert set(watch.outcomes) <= {"ok", "cancelled"}


def test_a_reader_who_takes_his_time_is_no_fault_of_the_upstream() -> None:
    watch = Watched()
    with ScriptedUpstream([chat_stream("a", "b", "c")]) as server:

        async def slowly(upstream: Upstream) -> int:
            seen = 0
            async for _ in upstream.stream(CHAT, ASKED):
                seen += 1
                await asyncio.sleep(0.2)
            return seen

        assert with_upstream(server.url, slowly, watch, timeout_s=0.5) == 5

    assert watch.outcomes == ["ok"]
    (seconds,) = watch.seconds
    assert seconds is not None
    assert seconds < 0.5
