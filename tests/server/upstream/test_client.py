"""An upstream is asked over real sockets: what it answers arrives as it was sent, and every fault has its own name."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import aclosing
from typing import Any, TypeVar

import pytest

from softspec.errors import UpstreamError
from softspec.server.upstream.client import Upstream
from softspec.server.upstream.faults import Outcome
from softspec.server.upstream.settings import UpstreamSettings
from softspec.server.upstream.upstreams import Upstreams
from tests.support.scripted_upstream import (
    CHAT,
    TEXT,
    USAGE,
    Json,
    ScriptedUpstream,
    answer,
    chat_answer,
    chat_chunk,
    chat_stream,
)

ASKED: Json = {"model": "mine", "messages": [{"role": "user", "content": "Is it?"}]}
Result = TypeVar("Result")


class Watched:
    """What an upstream tells of its calls and its circuit."""

    def __init__(self) -> None:
        self.outcomes: list[Outcome] = []
        self.seconds: list[float | None] = []
        self.circuit: list[bool] = []

    def upstream_answered(self, upstream: str, outcome: Outcome, seconds: float | None) -> None:
        assert upstream == "big"
        self.outcomes.append(outcome)
        self.seconds.append(seconds)

    def upstream_circuit(self, upstream: str, is_open: bool) -> None:
        self.circuit.append(is_open)


def with_upstream(
    url: str,
    use: Callable[[Upstream], Awaitable[Result]],
    watch: Watched | None = None,
    environment: Mapping[str, str] = {},
    **settings: Any,
) -> Result:
    """What `use` gives of an upstream at this address."""

    async def scenario() -> Result:
        read = UpstreamSettings(**{"url": url, "model": "big-1", **settings})
        upstreams = Upstreams({"big": read}, environment, watch or Watched())
        try:
            return await use(upstreams["big"])
        finally:
            await upstreams.aclose()

    return asyncio.run(scenario())


async def all_chunks(upstream: Upstream, path: str = CHAT, body: Json = ASKED) -> list[Json]:
    async with aclosing(upstream.stream(path, body)) as chunks:
        return [chunk async for chunk in chunks]


def fault_of(url: str, use: Callable[[Upstream], Awaitable[object]], **settings: Any) -> UpstreamError:
    with pytest.raises(UpstreamError) as caught:
        with_upstream(url, use, **settings)
    return caught.value


def asking(upstream: Upstream) -> Awaitable[Json]:
    return upstream.ask(CHAT, ASKED)


def test_a_whole_answer_arrives_as_it_was_sent() -> None:
    sent = chat_answer("Ja 🦊", system_fingerprint="fp", service_tier="default")
    watch = Watched()
    with ScriptedUpstream([answer(sent)]) as server:
        found = with_upstream(server.url, asking, watch)

    assert found == sent
    assert server.requests[0].path == "/v1/chat/completions"
    assert server.requests[0].body == {**ASKED, "model": "big-1", "stream": False}
    assert watch.outcomes == ["ok"]


def test_a_text_completion_arrives_as_it_was_sent() -> None:
    sent = {
        "id": "cmpl-1",
        "object": "text_completion",
        "choices": [{"index": 0, "text": "so"}],
        "usage": USAGE,
    }
    with ScriptedUpstream([answer(sent)]) as server:
        found = with_upstream(server.url, lambda upstream: upstream.ask(TEXT, {"prompt": "and"}))

    assert found == sent
    assert server.requests[0].path == "/v1/completions"


def test_a_stream_arrives_chunk_by_chunk_with_its_usage() -> None:
    watch = Watched()
    with ScriptedUpstream([chat_stream("Ja", ", ", "🦊")]) as server:
        chunks = with_upstream(server.url, all_chunks, watch)

    assert chunks[:3] == [chat_chunk("Ja"), chat_chunk(", "), chat_chunk("🦊")]
    assert chunks[-1]["usage"] == USAGE
    assert server.requests[0].body["stream_options"] == {"include_usage": True}
    assert watch.outcomes == ["ok"]
