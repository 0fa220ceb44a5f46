"""A stream is read however it is cut and written, and one that breaks off is never taken for a whole one."""

import json
from contextlib import aclosing
from typing import Any

import pytest

from softspec.errors import UpstreamError
from softspec.server.upstream import stream
from softspec.server.upstream.client import Upstream
from tests.support.asked_upstream import ASKED, Watched, all_chunks, fault_of, with_upstream
from tests.support.scripted_upstream import (
    CHAT,
    DONE,
    TEXT,
    Json,
    Script,
    ScriptedUpstream,
    answer,
    chat_answer,
    chat_chunk,
    chat_stream,
    error,
    event,
    events,
    raw,
)

JA, FOX = chat_chunk("Ja"), chat_chunk(" 🦊\u2028ü", "stop")
BODY = event(json.dumps(JA)) + f"data: {json.dumps(FOX, ensure_ascii=False)}\n\n".encode() + DONE


def chunks_of(*parts: bytes, **settings: Any) -> list[Json]:
    with ScriptedUpstream([events(*parts)]) as server:
        return with_upstream(server.url, all_chunks, max_retries=0, **settings)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 50])
def test_a_stream_may_be_cut_anywhere(size: int) -> None:
    """In the middle of a character, a line end, a field."""
    parts = [BODY[at : at + size] for at in range(0, len(BODY), size)]

    assert chunks_of(*parts) == [JA, FOX]


@pytest.mark.parametrize(
    "body",
    [
        BODY.replace(b"\n", b"\r\n"),
        BODY.replace(b"\n", b"\r"),
        BODY.replace(b"data: ", b"data:"),
        b"\xef\xbb\xbf" + BODY,
        b": a comment\n\n" + BODY.replace(b"\n\n", b"\n\n: ping\n\n"),
        BODY.replace(b"data: {", b"event: message\nid: 3\nretry: 10\ndata: {"),
        BODY.replace(b"data: {", b"event: completion\ndata: {"),
        BODY.replace(b'data: {"id"', b'data: {\ndata: "id"'),
        BODY.replace(b"data: {", b"data:\n\ndata: {"),
        BODY.replace(b"data: {", b"unknown: field\nwithout colon\ndata: {"),
        BODY.removesuffix(b"\n"),
        BODY.removesuffix(b"\n\n"),
        BODY + event(chat_chunk("after the end")),
        BODY.replace(b"[DONE]", b" [DONE] "),
    ],
    ids=[
        "CRLF",
        "CR",
        "no space",
        "byte order mark",
        "comments",
        "other fields",
        "named events",
        "data in two lines",
        "empty events",
        "unknown fields",
        "no last empty line",
        "no last line end",
        "more after the end",
        "spaces",
    ],
)
def test_a_stream_may_be_written_in_every_way_that_the_format_allows(body: bytes) -> None:
    assert chunks_of(body) == [JA, FOX]
    assert chunks_of(*(body[at : at + 1] for at in range(len(body)))) == [JA, FOX]


def test_the_text_of_a_completion_is_streamed() -> None:
    sent = {"id": "cmpl-1", "choices": [{"index": 1, "text": "so", "logprobs": None}]}
    with ScriptedUpstream([events(event(sent), DONE)]) as server:
        found = with_upstream(server.url, lambda upstream: all_chunks(upstream, TEXT, {"prompt": "and"}))

    assert found == [sent]


def test_chunks_without_choices_or_deltas_pass() -> None:
    """Some servers begin with what their filters found, others end with nothing."""
    sent = [{"choices": [], "prompt_filter_results": []}, {"choices": [{"index": 0, "delta": None}]}, JA]

    assert chunks_of(*map(event, sent), DONE) == sent


@pytest.mark.parametrize(
    "kind", ["text/event-stream; charset=utf-8", "TEXT/Event-Stream", "text/event-stream;x=1"]
)
def test_the_content_type_may_have_parameters(kind: str) -> None:
    with ScriptedUpstream([events(BODY, kind=kind)]) as server:
        assert with_upstream(server.url, all_chunks) == [JA, FOX]


# Broken off


def broken(script: Script, **settings: Any) -> tuple[list[Json], UpstreamError, int]:
    """The chunks before the fault, the fault, and how many requests there were."""
    seen: list[Json] = []

    async def reading(upstream: Upstream) -> None:
        async with aclosing(upstream.stream(CHAT, ASKED)) as chunks:
            async for chunk in chunks:
                seen.append(chunk)

    with ScriptedUpstream([script, chat_stream("again")]) as server:
        fault = fault_of(server.url, reading, **settings)
        assert server.until(lambda: server.connections == 0)
        return seen, fault, len(server.requests)


HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n"


@pytest.mark.parametrize(
    ("script", "told"),
    [
        (events(event(JA), complete=False), "closed the connection in the middle of its answer"),
        (
            events(event(JA), event(FOX)[:40], complete=False),
            "closed the connection in the middle of its answer",
        ),
        (events(event(JA)), "ended its stream without [DONE]"),
        (raw(HEAD, event(JA)), "ended its stream without [DONE]"),
        (raw(HEAD, event(JA), event(FOX)[:40]), "ended its stream without [DONE]"),
        (raw(HEAD, event(JA), b"data: [DO"), "ended its stream without [DONE]"),
        (
            events(event(JA), event({"error": {"message": "out of memory", "code": 500}}), DONE),
            "ended its answer with an error: out of memory",
        ),
        (
            events(event(JA), b'event: error\ndata: {"error": "gone"}\n\n'),
            "ended its answer with an error: gone",
        ),
    ],
    ids=[
        "closed",
        "closed in an event",
        "no end",
        "no length",
        "half event",
        "half end",
        "error",
        "error event",
    ],
)
def test_a_stream_that_ends_too_early_is_cut_and_not_asked_for_again(script: Script, told: str) -> None:
    seen, fault, requests = broken(script)

    assert (seen, fault.outcome, requests) == ([JA], "cut", 1)
    assert str(fault) == f"upstream 'big' {told}"


@pytest.mark.parametrize(
    "bad",
    [
        b"data: not json\n\n",
        b"data: 3\n\n",
        b"data: []\n\n",
        b"data: {}\n\n",
        b'data: {"choices": [{"delta": "Ja"}]}\n\n',
        b'data: {"choices": [{"delta": {"content": ["Ja"]}}]}\n\n',
        b'data: {"choices": [{"index": null, "delta": {}}]}\n\n',
        b'data: {"choices": [], "usage": 3}\n\n',
        b'data: {"choices": [{"delta": {"content": "Ja"}, "logprob": -Infinity}]}\n\n',
        event(JA).removesuffix(b"\n") + event(JA),
    ],
)
@pytest.mark.parametrize("position", [0, 1], ids=["first", "second"])
def test_an_event_that_is_no_chunk_is_malformed(bad: bytes, position: int) -> None:
    seen, fault, requests = broken(events(*[event(JA)] * position, bad, DONE))

    assert (seen, fault.outcome, requests) == ([JA] * position, "malformed", 1)


@pytest.mark.parametrize(
    "script",
    [
        answer(chat_answer()),
        events(BODY, kind="application/json"),
        raw(b"HTTP/1.1 200 OK\r\n\r\n", BODY),
        events(DONE),
        raw(HEAD.replace(b"\r\n\r\n", b"\r\ncontent-encoding: gzip\r\n\r\n"), b"not gzip" + BODY),
    ],
    ids=["a whole answer", "wrong type", "no type", "no chunk", "not gzip"],
)
def test_what_is_no_stream_is_malformed(script: Script) -> None:
    seen, fault, requests = broken(script)

    assert (seen, fault.outcome, requests) == ([], "malformed", 1)


def test_an_event_without_end_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "MOST_EVENT_BYTES", 100_000)

    seen, fault, _ = broken(events(event(JA), b"data: ", *[b"x" * 10_000] * 10_000))

    assert (seen, fault.outcome) == ([JA], "malformed")


@pytest.mark.parametrize(
    "script",
    [
        events(complete=False),
        events(b": waiting\n\n", complete=False),
        events(event(JA)[:30], complete=False),
        events(),
        raw(HEAD, event(JA)[:30]),
        events(event({"error": {"message": "busy", "code": 429}}), DONE),
        events(event({"error": "busy"}), DONE),
        error(503),
    ],
    ids=[
        "closed",
        "comment",
        "closed in an event",
        "empty",
        "half event",
        "error with code",
        "error",
        "status",
    ],
)
def test_before_the_first_event_a_stream_is_asked_for_again(script: Script) -> None:
    watch = Watched()
    with ScriptedUpstream([script, script, events(BODY)]) as server:
        assert with_upstream(server.url, all_chunks, watch) == [JA, FOX]

    assert len(server.requests) == 3
    assert watch.outcomes == ["ok"]


def test_an_error_in_place_of_the_first_event_is_told() -> None:
    seen, fault, requests = broken(events(event({"error": {"message": "bad grammar", "code": 400}}), DONE))

    assert (seen, fault.outcome, fault.status, requests) == ([], "status", 400, 1)
    assert str(fault) == "upstream 'big' answered with an error: bad grammar"
