"""What can go wrong until an answer has begun: each fault has its name, its limit in time, its number of attempts."""

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from itertools import pairwise
from typing import Any

import pytest

from softspec.server.upstream.call import pause_s, retry_after_s
from softspec.server.upstream.faults import Fault
from tests.support.asked_upstream import Watched, all_chunks, asking, fault_of, with_upstream
from tests.support.scripted_upstream import (
    DONE,
    Script,
    ScriptedUpstream,
    answer,
    chat_answer,
    chat_chunk,
    chat_stream,
    error,
    event,
    events,
    hang,
    raw,
    response,
)

WAYS = pytest.mark.parametrize("way", [asking, all_chunks], ids=["whole", "streamed"])
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


def good(way: Any) -> Script:
    return answer(chat_answer("Ja")) if way is asking else chat_stream("Ja")


def said(way: Any, found: Any) -> str:
    choice = found["choices"][0]["message"] if way is asking else found[0]["choices"][0]["delta"]
    return str(choice["content"])


@contextmanager
def unused_port() -> Iterator[int]:
    """A port at which nobody listens, and that nobody else gets meanwhile."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]


@contextmanager
def full_port() -> Iterator[int]:
    """A port whose queue of connections is full: whoever tries to connect hears nothing."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(0)
        address = listening.getsockname()
        waiting = [socket.socket() for _ in range(4)]
        for each in waiting:
            each.setblocking(False)
            each.connect_ex(address)
        yield address[1]
        for each in waiting:
            each.close()


# No connection


@WAYS
def test_refused_connections_are_tried_again_and_told(way: Any) -> None:
    with unused_port() as port:
        fault = fault_of(f"http://127.0.0.1:{port}/v1", way, max_retries=2)

    assert (fault.outcome, fault.status) == ("refused", None)
    assert str(fault) == "upstream 'big' cannot be reached: connection refused (3 attempts)"


def test_an_unknown_host_is_told_without_its_name() -> None:
    fault = fault_of("http://nowhere.invalid:9/v1", asking, max_retries=0)

    assert fault.outcome == "refused"
    assert str(fault) == "upstream 'big' cannot be reached: its host is not known"


def test_a_connection_that_is_not_accepted_ends_in_time() -> None:
    with full_port() as port:
        began = time.monotonic()
        fault = fault_of(f"http://127.0.0.1:{port}/v1", asking, connect_timeout_s=0.2, max_retries=1)

    assert fault.outcome == "timeout"
    assert 0.4 < time.monotonic() - began < 1.5
    assert "did not accept a connection in time (2 attempts)" in str(fault)


def test_tls_to_a_plain_port_is_told() -> None:
    with ScriptedUpstream([answer(chat_answer())]) as server:
        fault = fault_of(server.url.replace("http:", "https:"), asking, max_retries=0)

    assert fault.outcome == "refused"
    assert "no TLS connection could be made" in str(fault)


# Silence


@WAYS
def test_silence_before_the_first_byte_ends_in_time(way: Any) -> None:
    watch = Watched()
    with ScriptedUpstream([hang()]) as server:
        began = time.monotonic()
        fault = fault_of(server.url, way, timeout_s=0.4, watch=watch)
        assert server.until(lambda: server.connections == 0)

    assert fault.outcome == "timeout"
    assert 0.3 < time.monotonic() - began < 1.4
    assert watch.outcomes == ["timeout"]


@pytest.mark.parametrize(
    "begun", [b"", HEAD, HEAD + b"c\r\n: still here\r\n"], ids=["nothing", "head", "comment"]
)
def test_a_stream_without_a_first_event_is_asked_for_again(begun: bytes) -> None:
    with ScriptedUpstream([hang(begun), chat_stream("Ja")]) as server:
        found = with_upstream(server.url, all_chunks, first_byte_timeout_s=0.2)

    assert said(all_chunks, found) == "Ja"
    assert len(server.requests) == 2


def test_a_whole_answer_may_take_its_time() -> None:
    """Its first byte comes when it is complete: asked for again, it would take as long."""
    slow = raw(b"", response(b'{"choices":[{"index":0,"message":{"content":"Ja"}}]}'), pause_s=0.3)
    with ScriptedUpstream([slow]) as server:
        found = with_upstream(server.url, asking, first_byte_timeout_s=0.1)

    assert said(asking, found) == "Ja"


@WAYS
def test_a_slow_drip_ends_in_time(way: Any) -> None:
    """Each byte comes soon enough; the whole does not."""
    if way is asking:
        body = b'{"choices": [' + b" " * 200
        script = raw(*(bytes([byte]) for byte in response(body)), pause_s=0.01)
    else:
        script = chat_stream(*"abcdefghijklmnopqrstuvwxyz" * 4, pause_s=0.02)
    with ScriptedUpstream([script]) as server:
        began = time.monotonic()
        fault = fault_of(server.url, way, timeout_s=0.5)
        assert server.until(lambda: server.connections == 0)

    assert fault.outcome == "timeout"
    assert 0.4 < time.monotonic() - began < 1.5
    assert len(server.requests) == 1


def test_silence_after_the_first_event_ends_in_time() -> None:
    chunk = event(chat_chunk("Ja"))
    begun = HEAD + f"{len(chunk):x}\r\n".encode() + chunk + b"\r\n"
    with ScriptedUpstream([hang(begun)]) as server:
        fault = fault_of(server.url, all_chunks, timeout_s=0.4)

    assert fault.outcome == "timeout"
    assert str(fault) == "upstream 'big' did not finish within 0.4 s"
    assert len(server.requests) == 1


# Statuses


@WAYS
@pytest.mark.parametrize("status", [429, 500, 502, 503, 504, 529])
def test_what_may_pass_is_tried_again(way: Any, status: int) -> None:
    watch = Watched()
    with ScriptedUpstream([error(status), error(status), good(way)]) as server:
        found = with_upstream(server.url, way, watch)

    assert said(way, found) == "Ja"
    assert len(server.requests) == 3
    assert watch.outcomes == ["ok"]


@WAYS
@pytest.mark.parametrize("status", [400, 401, 403, 404, 408, 413, 422, 501, 505, 508])
def test_what_stays_is_tried_once(way: Any, status: int) -> None:
    with ScriptedUpstream([error(status, "that is not allowed"), good(way)]) as server:
        fault = fault_of(server.url, way)

    assert (fault.outcome, fault.status) == ("status", status)
    assert str(fault) == f"upstream 'big' answered with status {status}: that is not allowed"
    assert len(server.requests) == 1


def test_the_number_of_attempts_is_limited() -> None:
    with ScriptedUpstream([error(503, "overloaded")]) as server:
        fault = fault_of(server.url, asking, max_retries=3)

    assert str(fault) == "upstream 'big' answered with status 503: overloaded (4 attempts)"
    assert len(server.requests) == 4


@pytest.mark.parametrize(
    ("body", "shown"),
    [
        (
            {"error": {"message": "line one\n\tline\x1b[31m two"}},
            "line one line\N{REPLACEMENT CHARACTER}[31m two",
        ),
        ({"error": "just text"}, "just text"),
        ({"message": "flat"}, "flat"),
        ({"detail": [{"msg": "x"}]}, None),
        ({"error": {"message": None}}, None),
        ([1, 2], None),
        (b"plain text", "plain text"),
        (b"<html><body>Bad gateway</body></html>", None),
        (b"\xff\xfe", "\N{REPLACEMENT CHARACTER}" * 2),
        (b"", None),
        (b"[" * 50_000, "[" * 297 + "..."),
        ({"error": {"message": "long " * 1000}}, ("long " * 100)[:297] + "..."),
    ],
)
def test_the_upstreams_words_are_told_in_one_short_line(body: Any, shown: str | None) -> None:
    with ScriptedUpstream([answer(body, 400)]) as server:
        fault = fault_of(server.url, asking)

    assert str(fault) == "upstream 'big' answered with status 400" + (f": {shown}" if shown else "")


@WAYS
@pytest.mark.parametrize("then", [raw, hang], ids=["closed", "silence"])
def test_an_error_whose_text_never_comes_is_still_that_error(
    way: Any, then: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("softspec.server.upstream.client.ERROR_TEXT_S", 0.1)
    head = b"HTTP/1.1 400 Bad\r\ncontent-type: application/json\r\ncontent-length: 50\r\n\r\n"
    with ScriptedUpstream([then(head)]) as server:
        fault = fault_of(server.url, way)

    assert (fault.outcome, fault.status) == ("status", 400)


# Retry-After


def waited(header: str) -> float:
    """Seconds between an attempt that was answered with this header and the next."""
    with ScriptedUpstream([error(429, headers={"retry-after": header}), answer(chat_answer("Ja"))]) as server:
        with_upstream(server.url, asking, timeout_s=10)

    (pause,) = [later.at - earlier.at for earlier, later in pairwise(server.requests)]
    return pause


def test_the_upstream_says_when_to_come_again() -> None:
    assert 1.0 <= waited("1") < 1.5


@pytest.mark.slow
def test_the_upstream_says_in_a_date_when_to_come_again() -> None:
    """A date has whole seconds."""
    assert 0.9 < waited(format_datetime(datetime.now(UTC) + timedelta(seconds=2), usegmt=True)) < 2.5


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("0", 0.0),
        (" 17 ", 17.0),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0.0),
        ("-3", None),
        ("1.5", None),
        ("soon", None),
        ("", None),
        ("٣", None),
        (None, None),
    ],
)
def test_retry_after_is_a_number_or_a_date(header: str | None, seconds: float | None) -> None:
    assert retry_after_s(header) == seconds


def test_retry_after_as_a_date_is_the_time_until_then() -> None:
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=90), usegmt=True)

    found = retry_after_s(date)

    assert found is not None
    assert 88 < found <= 90


@pytest.mark.parametrize("header", ["60", "99999999999999999999", "Fri, 31 Dec 9999 23:59:59 GMT"])
def test_who_is_to_come_again_too_late_gives_up_at_once(header: str) -> None:
    with ScriptedUpstream([error(429, "later", {"retry-after": header})]) as server:
        began = time.monotonic()
        fault = fault_of(server.url, asking, timeout_s=5)

    assert (fault.outcome, fault.status) == ("status", 429)
    assert time.monotonic() - began < 1
    assert len(server.requests) == 1


@pytest.mark.parametrize("attempts", [1, 2, 3, 10])
def test_pauses_are_spread_over_the_whole_of_a_growing_time(
    attempts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Callers who failed together do not come again together."""
    monkeypatch.undo()
    longest = min(8.0, 0.5 * 2.0 ** (attempts - 1))

    pauses = [pause_s(attempts, Fault("cut", "")) for _ in range(2000)]

    assert 0 <= min(pauses) < 0.02 * longest
    assert 0.98 * longest < max(pauses) <= longest
    assert sum(pauses) / 2000 == pytest.approx(longest / 2, rel=0.1)


# Connections that end


@WAYS
def test_a_connection_closed_before_the_answer_is_tried_again(way: Any) -> None:
    with ScriptedUpstream([raw(b""), raw(b"HTTP/1.1 2"), good(way)]) as server:
        found = with_upstream(server.url, way)

    assert said(way, found) == "Ja"
    assert len(server.requests) == 3


def test_a_whole_answer_that_ends_in_the_middle_is_not_asked_for_again() -> None:
    whole = response(b'{"choices":[{"index":0,"message":{"content":"Ja"}}]}')
    with ScriptedUpstream([raw(whole[:-10]), answer(chat_answer())]) as server:
        fault = fault_of(server.url, asking)

    assert fault.outcome == "cut"
    assert str(fault) == "upstream 'big' closed the connection in the middle of its answer"
    assert len(server.requests) == 1


def test_bytes_that_are_not_http_are_told() -> None:
    with ScriptedUpstream([raw(b"SSH-2.0-OpenSSH_9.6\r\n")]) as server:
        fault = fault_of(server.url, asking, max_retries=0)

    assert fault.outcome == "cut"


# Whole answers that are none


def message(**changed: Any) -> Any:
    return chat_answer(choices=[{"index": 0, "message": {"content": "Ja"}, **changed}])


@pytest.mark.parametrize(
    "script",
    [
        answer(b"not json"),
        answer(b""),
        answer(b"<html>hello</html>", kind="text/html"),
        answer(b"[" * 100_000),
        answer(b'{"choices": [{"index": 0, "message": {"content": "Ja"}, "p": NaN}]}'),
        answer(b'{"choices": [{"index": 0, "message": {"content": "Ja"}, "p": 1e999}]}'),
        answer(b'{"choices": [{"index": 0, "message": {"content": "Ja"}, "p": ' + b"1" * 5000 + b"}]}"),
        answer([]),
        answer("text"),
        answer(None),
        answer({"object": "chat.completion"}),
        answer(chat_answer(choices=[])),
        answer(chat_answer(choices={})),
        answer(chat_answer(choices=None)),
        answer(chat_answer(choices=["Ja"])),
        answer(chat_answer(choices=[{"index": 0, "text": "Ja"}])),
        answer(message(message=None)),
        answer(message(message={"content": 3})),
        answer(message(message={"content": None, "tool_calls": "f()"})),
        answer(message(message={"content": None, "tool_calls": ["f()"]})),
        answer(message(message={"content": None, "tool_calls": [{"function": "f()"}]})),
        answer(message(message={"content": None, "tool_calls": [{"function": {"arguments": {}}}]})),
        answer(message(message={"content": None, "tool_calls": [{"index": None}]})),
        answer(message(finish_reason=["stop"])),
        answer(message(index="0")),
        answer(message(index=-1)),
        answer(message(index=True)),
        answer(chat_answer(usage=[])),
        answer(chat_answer(usage={"prompt_tokens": "7"})),
        answer(chat_answer(usage={"prompt_tokens": -7})),
        answer(chat_answer(usage={"completion_tokens": 1.5})),
        answer(chat_answer(), status=201),
        raw(b"HTTP/1.1 204 No Content\r\n\r\n", keep=True),
        answer(b"\x1f\x8bnot gzip", headers={"content-encoding": "gzip"}),
        events(event(chat_chunk("Ja")), DONE),
    ],
)
def test_an_answer_that_cannot_be_used_is_malformed(script: Script) -> None:
    with ScriptedUpstream([script]) as server:
        fault = fault_of(server.url, asking)

    assert fault.outcome == "malformed"
    assert len(server.requests) == 1
    assert "\n" not in str(fault)


def test_an_answer_that_is_too_large_is_not_read_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("softspec.server.upstream.client.MOST_ANSWER_BYTES", 100_000)
    endless = events(*[b" " * 10_000] * 100_000)
    with ScriptedUpstream([endless]) as server:
        fault = fault_of(server.url, asking)
        assert server.until(lambda: server.connections == 0)

    assert fault.outcome == "malformed"
    assert "more than 100000 bytes" in str(fault)


def test_an_error_in_place_of_an_answer_is_told() -> None:
    with ScriptedUpstream([answer({"error": {"message": "no such model", "code": 404}})]) as server:
        fault = fault_of(server.url, asking)

    assert (fault.outcome, fault.status) == ("status", 404)
    assert str(fault) == "upstream 'big' answered with an error: no such model"


@pytest.mark.parametrize("usage", [None, {}, {"prompt_tokens": None}, {"total_tokens": 3, "cost": 0.1}])
def test_usage_may_be_incomplete(usage: Any) -> None:
    with ScriptedUpstream([answer(chat_answer(usage=usage))]) as server:
        assert with_upstream(server.url, asking)["usage"] == usage
