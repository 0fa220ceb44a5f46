"""The parts of a streamed answer, from the server-sent events of an upstream.

In: a response whose body has not been read. Out: its chunks, and a Fault when it ends before `[DONE]`. Owns the
response from then on.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import suppress

import httpx2

from softspec.server.upstream.answer import read_chunk
from softspec.server.upstream.faults import Fault, faults_of_http
from softspec.server.upstream.request import Json

DONE = "[DONE]"
MOST_EVENT_BYTES = 4 * 1024 * 1024
REST_S = 0.1
"""How long the end of a body may take after `[DONE]`; a connection of which more is unread is not used again."""


async def chunks_of(response: httpx2.Response, path: str) -> AsyncGenerator[Json, None]:
    """The chunks up to `[DONE]`; closing the generator closes the connection.

    Raises:
        Fault: it is no such stream, an event is not a chunk, or the stream ends too early.
    """
    try:
        _require_events(response)
        body = _Body(response)
        events = aiter(body.events())
        has_begun = False
        while (data := await _next_data(events, has_begun)) is not None and data.strip() != DONE:
            try:
                chunk = read_chunk(path, data, has_begun)
            except Fault as fault:
                # The last line of a body that ended may be half of one.
                raise _cut(has_begun) if body.has_ended and fault.outcome == "malformed" else fault from None
            has_begun = True
            yield chunk
        if data is None:
            raise _cut(has_begun)
        with suppress(TimeoutError, httpx2.HTTPError):
            async with asyncio.timeout(REST_S):
                async for _ in events:
                    pass
    finally:
        await response.aclose()


class _Body:
    """The body of a response as events; `has_ended` is true from its last byte on."""

    def __init__(self, response: httpx2.Response) -> None:
        self._response = response
        self.has_ended = False

    def events(self) -> httpx2.EventSource:
        """The events, the last of them also where its empty line is missing; a byte order mark is no part of them."""
        whole = httpx2.Response(
            200,
            headers={"content-type": "text/event-stream"},
            content=self._lines(),
            request=self._response.request,
            default_encoding="utf-8-sig",
        )
        return httpx2.EventSource(whole, max_event_size=MOST_EVENT_BYTES)

    async def _lines(self) -> AsyncIterator[bytes]:
        async for part in self._response.aiter_bytes():
            yield part
        self.has_ended = True
        yield b"\n\n"


async def _next_data(events: AsyncIterator[httpx2.ServerSentEvent], has_begun: bool) -> str | None:
    """The text of the next event that has some; None at the end."""
    with faults_of_http(has_begun):
        async for event in events:
            if event.data.strip():
                return event.data
    return None


def _require_events(response: httpx2.Response) -> None:
    kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "text/event-stream":
        raise Fault(
            "malformed", "answered with another content type than text/event-stream", words=kind or "none"
        )


def _cut(has_begun: bool) -> Fault:
    told = "ended its stream without [DONE]" if has_begun else "ended its stream before the first event"
    return Fault("cut", told, is_transient=not has_begun)
