"""An upstream is asked over real sockets: what goes out is the caller's request, what comes back is as it was sent."""

import asyncio
import json
import logging
import time
import zlib
from itertools import pairwise
from typing import Any

import pytest

from softspec.errors import UpstreamError
from softspec.server.upstream.client import Upstream
from tests.support.asked_upstream import ASKED, Watched, all_chunks, asking, fault_of, with_upstream
from tests.support.scripted_upstream import (
    CHAT,
    DONE,
    TEXT,
    USAGE,
    Json,
    ScriptedUpstream,
    answer,
    chat_answer,
    chat_chunk,
    chat_stream,
    error,
    event,
    events,
    hang,
)

KEY = "sk-0123456789-very-secret"


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
    assert server.requests[0].headers["accept-encoding"] == "identity"
    assert server.requests[0].body["stream_options"] == {"include_usage": True}
    assert watch.outcomes == ["ok"]


def test_tools_and_formats_go_out_and_calls_come_back() -> None:
    asked = {
        **ASKED,
        "tools": [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}],
        "tool_choice": "auto",
        "response_format": {"type": "json_object"},
        "seed": 3,
        "top_k": 4,
        "uncertainty": {"policy": {"action": "route", "threshold": 0.1}},
    }
    call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
    message = {"role": "assistant", "content": None, "tool_calls": [call]}
    sent = chat_answer(choices=[{"index": 0, "message": message, "finish_reason": "tool_calls"}])
    with ScriptedUpstream([answer(sent)]) as server:
        found = with_upstream(server.url, lambda upstream: upstream.ask(CHAT, asked))

    assert found == sent
    expected = {name: value for name, value in asked.items() if name != "uncertainty"}
    assert server.requests[0].body == {**expected, "model": "big-1", "stream": False}


def test_what_the_caller_wrote_goes_out_whatever_characters_it_has() -> None:
    """Half a surrogate pair is JSON, though it is not text."""
    asked = {**ASKED, "messages": [{"role": "user", "content": "\ud83e ü \x00 \u2028"}]}
    with ScriptedUpstream([answer(chat_answer())]) as server:
        with_upstream(server.url, lambda upstream: upstream.ask(CHAT, asked))

    assert server.requests[0].body["messages"] == asked["messages"]


def test_half_a_character_comes_back_as_one_that_can_be_sent_on() -> None:
    sent = json.dumps(chat_answer("?")).replace("?", "\\ud83e x \\ud83e\\udd8a").encode()
    with ScriptedUpstream([answer(sent)]) as server:
        found = with_upstream(server.url, asking)

    assert found["choices"][0]["message"]["content"] == "\N{REPLACEMENT CHARACTER} x 🦊"


def test_of_the_callers_headers_only_those_for_tracing_go_out() -> None:
    headers = {
        "authorization": "Bearer the-callers-own",
        "cookie": "session=1",
        "x-request-id": "r-1",
        "traceparent": "00-1-2-01",
        "x-forwarded-for": "10.0.0.1",
        "x-softspec-via": "someone",
    }
    with ScriptedUpstream(
        [answer(chat_answer(), headers={"set-cookie": "a=b"}), answer(chat_answer())]
    ) as server:

        async def twice(upstream: Upstream) -> None:
            await upstream.ask(CHAT, ASKED, headers)
            await upstream.ask(CHAT, ASKED)

        with_upstream(server.url, twice)

    first, second = (request.headers for request in server.requests)
    assert (first["x-request-id"], first["traceparent"]) == ("r-1", "00-1-2-01")
    assert not {"authorization", "cookie", "x-forwarded-for"} & {*first, *second}
    before, here = first["x-softspec-via"].split(", ")
    assert before == "someone"
    assert second["x-softspec-via"] == here


@pytest.mark.parametrize("value", ["ü", "a" * 513, "", "\x7f"])
def test_a_header_that_not_every_server_takes_stays_here(value: str) -> None:
    with ScriptedUpstream([answer(chat_answer())]) as server:
        headers = {"x-request-id": value, "x-softspec-via": f"a, {value}"}
        with_upstream(server.url, lambda upstream: upstream.ask(CHAT, ASKED, headers))

    sent = server.requests[0].headers
    assert "x-request-id" not in sent
    assert sent["x-softspec-via"].split(", ")[0] == "a"
    assert len(sent["x-softspec-via"].split(", ")) == 2


@pytest.mark.parametrize("whole", [True, False], ids=["whole", "streamed"])
def test_a_compressed_answer_is_read(whole: bool) -> None:
    def packed(text: bytes) -> bytes:
        packer = zlib.compressobj(wbits=31)
        return packer.compress(text) + packer.flush()

    if whole:
        script = answer(packed(json.dumps(chat_answer("Ja")).encode()), headers={"content-encoding": "gzip"})
        with ScriptedUpstream([script]) as server:
            assert with_upstream(server.url, asking) == chat_answer("Ja")
    else:
        body = packed(event(chat_chunk("Ja")) + DONE)
        script = events(body[:9], body[9:], kind="text/event-stream\r\ncontent-encoding: gzip")
        with ScriptedUpstream([script]) as server:
            assert with_upstream(server.url, all_chunks) == [chat_chunk("Ja")]


def test_connections_are_used_again() -> None:
    """Also after a stream, whose last bytes come behind its [DONE]."""

    async def six(upstream: Upstream) -> None:
        for _ in range(3):
            await upstream.ask(CHAT, ASKED)
            await all_chunks(upstream)

    scripts = [answer(chat_answer()), chat_stream("a", "b")] * 3
    with ScriptedUpstream(scripts) as server:
        with_upstream(server.url, six)

    assert len(server.requests) == 6
    assert server.accepted == 1


def test_tokens_are_not_held_back() -> None:
    """Each is read long before the next is sent."""
    seen: list[float] = []

    async def reading(upstream: Upstream) -> None:
        async for _ in upstream.stream(CHAT, ASKED):
            seen.append(time.monotonic())

    with ScriptedUpstream([chat_stream("a", "b", "c", pause_s=0.15)]) as server:
        with_upstream(server.url, reading)

    assert [later - earlier > 0.1 for earlier, later in pairwise(seen)] == [True] * 4


def test_connections_that_are_closed_end_their_calls() -> None:
    """As at the end of the server; what comes later ends as well, by the same kind of error."""

    async def use(upstream: Upstream) -> list[str]:
        calls = [asyncio.ensure_future(way(upstream)) for way in (asking, all_chunks)]
        while len(server.requests) < 2:
            await asyncio.sleep(0.01)
        await upstream._http.aclose()
        ended = await asyncio.gather(*calls, asking(upstream), return_exceptions=True)
        return [error.outcome for error in ended if isinstance(error, UpstreamError)]

    with ScriptedUpstream([hang()]) as server:
        assert with_upstream(server.url, use, max_retries=0) == ["cut", "cut", "busy"]


def test_a_redirect_is_not_followed() -> None:
    """The key would go with it."""
    moved = error(307, headers={"location": "http://127.0.0.1:1/v1/chat/completions"})
    with ScriptedUpstream([moved]) as server:
        fault = fault_of(server.url, asking)

    assert (fault.outcome, fault.status, len(server.requests)) == ("status", 307, 1)
    assert "final" in str(fault)


# Keys


def asked_with_key(scripts: list[Any], caplog: pytest.LogCaptureFixture) -> tuple[list[str], Json]:
    """What is said where a key is in use, in errors and in logs of every level, and the headers that were sent."""
    caplog.set_level(logging.DEBUG)
    told: list[str] = []

    async def both(upstream: Upstream) -> None:
        told.append(repr(vars(upstream)))
        for way in (asking, all_chunks):
            try:
                await way(upstream)
            except Exception as fault:
                told.extend((str(fault), repr(fault), repr(fault.args), str(vars(fault))))

    with ScriptedUpstream(scripts) as server:
        with_upstream(server.url, both, environment={"BIG_KEY": KEY}, api_key_env="BIG_KEY", max_retries=0)
    return [*told, caplog.text], server.requests[0].headers


def test_the_key_is_sent_and_never_told(caplog: pytest.LogCaptureFixture) -> None:
    """Not even when the upstream says it aloud."""
    echo = error(401, f"Incorrect API key provided: {KEY}.")

    told, headers = asked_with_key([echo], caplog)

    assert headers["authorization"] == f"Bearer {KEY}"
    assert "Incorrect API key provided: [key]." in told[1]
    assert not [text for text in told if KEY in text]


@pytest.mark.parametrize(
    "script",
    [
        answer(chat_answer()),
        answer(b"not json " + KEY.encode()),
        error(500, KEY * 20),
        events(event({"error": {"message": KEY}}), DONE),
    ],
    ids=["answered", "malformed", "long error", "error event"],
)
def test_the_key_is_in_no_error_and_no_log(script: Any, caplog: pytest.LogCaptureFixture) -> None:
    told, _ = asked_with_key([script], caplog)

    assert not [text for text in told if KEY[:12] in text]
