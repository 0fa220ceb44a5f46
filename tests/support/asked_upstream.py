"""Asking an upstream in tests: one upstream of given settings, in an event loop of its own."""

from collections.abc import Awaitable, Callable, Mapping
from contextlib import aclosing
from typing import Any, TypeVar

import pytest
import uvloop

from softspec.errors import UpstreamError
from softspec.server.upstream.client import Upstream
from softspec.server.upstream.faults import Outcome
from softspec.server.upstream.settings import UpstreamSettings
from softspec.server.upstream.upstreams import Upstreams
from tests.support.scripted_upstream import CHAT, Json

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

    return uvloop.run(scenario())  # as the server does


async def all_chunks(upstream: Upstream, path: str = CHAT, body: Json = ASKED) -> list[Json]:
    async with aclosing(upstream.stream(path, body)) as chunks:
        return [chunk async for chunk in chunks]


def fault_of(url: str, use: Callable[[Upstream], Awaitable[object]], **settings: Any) -> UpstreamError:
    """The error that `use` ends with."""
    with pytest.raises(UpstreamError) as caught:
        with_upstream(url, use, **settings)
    return caught.value


def asking(upstream: Upstream) -> Awaitable[Json]:
    return upstream.ask(CHAT, ASKED)
