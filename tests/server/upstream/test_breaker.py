"""An upstream that fails again and again is left alone, then tried by one caller at a time."""

import asyncio
from collections import Counter
from typing import Any

import httpx2
import pytest

from softspec.errors import UpstreamError
from softspec.server.upstream import upstreams
from softspec.server.upstream.breaker import CircuitBreaker
from softspec.server.upstream.client import Upstream
from tests.support.asked_upstream import Watched, all_chunks, asking, with_upstream
from tests.support.scripted_upstream import (
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
)


class Clock:
    """A time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0
        self.changes: list[bool] = []

    def breaker(self) -> CircuitBreaker:
        return CircuitBreaker(3, 10.0, self.changes.append, lambda: self.now)


def admitted(breaker: CircuitBreaker) -> int:
    permit = breaker.admit()
    assert permit is not None
    return permit


def opened(clock: Clock) -> CircuitBreaker:
    breaker = clock.breaker()
    for _ in range(3):
        breaker.failed(admitted(breaker))
    return breaker


def test_it_opens_after_so_many_failures_in_a_row() -> None:
    clock = Clock()
    breaker = clock.breaker()
    for end in (breaker.failed, breaker.failed, breaker.succeeded, breaker.failed, breaker.failed):
        end(admitted(breaker))

    assert breaker.wait_s is None
    breaker.failed(admitted(breaker))

    assert breaker.admit() is None
    assert breaker.wait_s == 10
    assert clock.changes == [True]


def test_one_probe_at_a_time_is_let_through() -> None:
    clock = Clock()
    breaker = opened(clock)

    clock.now += 9.9
    assert breaker.admit() is None
    clock.now += 0.1
    probe = admitted(breaker)
    assert [breaker.admit() for _ in range(5)] == [None] * 5
    breaker.succeeded(probe)

    assert admitted(breaker) is not None
    assert clock.changes == [True, False]


def test_a_probe_that_fails_opens_it_again_for_the_whole_time() -> None:
    clock = Clock()
    breaker = opened(clock)
    clock.now += 10
    probe = admitted(breaker)
    clock.now += 5
    breaker.failed(probe)

    assert breaker.wait_s == 10
    clock.now += 10
    assert admitted(breaker) is not None
    assert clock.changes == [True]


def test_a_probe_that_is_withdrawn_makes_way_for_the_next() -> None:
    clock = Clock()
    breaker = opened(clock)
    clock.now += 10
    breaker.withdrawn(admitted(breaker))

    breaker.succeeded(admitted(breaker))

    assert breaker.wait_s is None


def test_what_was_begun_before_it_opened_no_longer_counts() -> None:
    """A late success does not close it, a late failure neither prolongs the pause nor ends a probe."""
    clock = Clock()
    breaker = clock.breaker()
    early = [admitted(breaker) for _ in range(6)]
    for permit in early[:3]:
        breaker.failed(permit)
    clock.now += 5
    breaker.succeeded(early[3])
    breaker.failed(early[4])

    assert breaker.wait_s == 5
    clock.now += 5
    probe = admitted(breaker)
    breaker.failed(early[5])
    breaker.withdrawn(early[5])
    assert breaker.admit() is None
    breaker.succeeded(probe)

    assert clock.changes == [True, False]


# Around an upstream


def outcomes(scripts: list[Script], way: Any, calls: int, **settings: Any) -> tuple[list[str], Watched, int]:
    """How so many calls end, one after the other, and how many requests were sent."""
    watch = Watched()
    ended: list[str] = []

    async def use(upstream: Upstream) -> None:
        for _ in range(calls):
            try:
                await way(upstream)
                ended.append("ok")
            except UpstreamError as fault:
                ended.append(fault.outcome)

    with ScriptedUpstream(scripts) as server:
        with_upstream(server.url, use, watch, **{"max_retries": 0, "circuit_failures": 2, **settings})
    return ended, watch, len(server.requests)


HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n"


@pytest.mark.parametrize(
    ("way", "script", "outcome"),
    [
        (asking, error(500), "status"),
        (asking, raw(b""), "cut"),
        (asking, answer(b"no json"), "malformed"),
        (asking, hang(), "timeout"),
        (all_chunks, error(503), "status"),
        (all_chunks, events(event(chat_chunk("Ja"))), "cut"),
        (all_chunks, raw(HEAD, b"data: {}\n\n"), "malformed"),
        (all_chunks, hang(HEAD, event(chat_chunk("Ja"))), "timeout"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_failures_of_the_upstream_open_it(way: Any, script: Script, outcome: str) -> None:
    """Those after the first event too: whoever begins each answer and ends none is no better."""
    ended, watch, requests = outcomes([script], way, 4, timeout_s=0.1)

    assert ended[-1] == "open_circuit"
    assert set(ended[:-1]) == {outcome, "open_circuit"} or set(ended[:-1]) == {outcome}
    assert requests < 4
    assert watch.circuit == [False, True]
    assert watch.seconds[-1] is None


@pytest.mark.parametrize("status", [400, 401, 404, 422, 429])
def test_what_callers_get_wrong_does_not_open_it(status: int) -> None:
    ended, watch, requests = outcomes([error(status)], asking, 6)

    assert (ended, requests) == (["status"] * 6, 6)
    assert watch.circuit == [False]


def test_opening_and_closing_are_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="softspec")
    with ScriptedUpstream([error(500), answer(chat_answer())]) as server:

        async def use(upstream: Upstream) -> None:
            with pytest.raises(UpstreamError):
                await asking(upstream)
            await asyncio.sleep(0.12)
            await asking(upstream)

        with_upstream(server.url, use, max_retries=0, circuit_failures=1, circuit_open_s=0.1)

    lines = [record.message for record in caplog.records if record.name.startswith("softspec")]
    assert lines == [
        "upstream 'big' failed 1 times in a row: left alone for 0.1 s",
        "upstream 'big' answers again",
    ]


def test_a_call_that_found_no_connection_says_nothing_of_the_upstream(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(upstreams, "LIMITS", httpx2.Limits(max_connections=1))
    watch = Watched()
    with ScriptedUpstream([error(500), hang()]) as server:

        async def use(upstream: Upstream) -> None:
            with pytest.raises(UpstreamError, match="status 500"):
                await asking(upstream)
            waiting = asyncio.ensure_future(asking(upstream))
            while len(server.requests) < 2:
                await asyncio.sleep(0.01)
            for _ in range(3):
                with pytest.raises(UpstreamError, match="all of this server's connections are in use"):
                    await asking(upstream)
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)

        with_upstream(server.url, use, watch, max_retries=0, circuit_failures=2, connect_timeout_s=0.1)

    assert watch.outcomes == ["status", "busy", "busy", "busy", "cancelled"]
    assert watch.circuit == [False]


def test_callers_who_go_away_do_not_open_it() -> None:
    watch = Watched()
    with ScriptedUpstream([hang()]) as server:

        async def use(upstream: Upstream) -> None:
            tasks = [asyncio.ensure_future(asking(upstream)) for _ in range(6)]
            while len(server.requests) < 6:
                await asyncio.sleep(0.01)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        with_upstream(server.url, use, watch, circuit_failures=2)

    assert watch.circuit == [False]
    assert watch.outcomes == ["cancelled"] * 6


def test_a_call_is_not_tried_again_once_its_failures_have_opened_it() -> None:
    """It ends with what the upstream said, not with the breaker."""
    ended, _, requests = outcomes([error(500)], asking, 2, max_retries=5, circuit_failures=3)

    assert (ended, requests) == (["status", "open_circuit"], 3)


def test_of_many_callers_one_finds_out_that_the_upstream_is_back() -> None:
    watch = Watched()
    slow = answer(chat_answer("Ja"))

    async def after_a_while(request: Any) -> bool:
        await asyncio.sleep(0.2)
        return await slow(request)

    with ScriptedUpstream([error(500), error(500), after_a_while, slow]) as server:

        async def use(upstream: Upstream) -> tuple[Counter[str], Counter[str]]:
            async def ended() -> str:
                try:
                    await asking(upstream)
                except UpstreamError as fault:
                    return fault.outcome
                return "ok"

            async def of_twenty() -> Counter[str]:
                return Counter(await asyncio.gather(*(ended() for _ in range(20))))

            await ended()
            await ended()
            assert await of_twenty() == {"open_circuit": 20}
            assert len(server.requests) == 2
            await asyncio.sleep(0.35)
            return await of_twenty(), await of_twenty()

        probing, closed = with_upstream(
            server.url, use, watch, max_retries=0, circuit_failures=2, circuit_open_s=0.3
        )

    assert probing == {"ok": 1, "open_circuit": 19}
    assert closed == {"ok": 20}
    assert len(server.requests) == 23
    assert watch.circuit == [False, True, False]


def test_a_streamed_probe_closes_it_with_its_first_event() -> None:
    """Not with its last, which may be minutes later."""
    watch = Watched()
    long = chat_stream("a", "b", pause_s=0.3)
    with ScriptedUpstream([error(500), long, answer(chat_answer())]) as server:

        async def use(upstream: Upstream) -> None:
            with pytest.raises(UpstreamError):
                await asking(upstream)
            await asyncio.sleep(0.12)
            probe = asyncio.ensure_future(all_chunks(upstream))
            while watch.circuit != [False, True, False]:
                await asyncio.sleep(0.01)
            await asking(upstream)
            assert not probe.done()
            await probe

        with_upstream(server.url, use, watch, max_retries=0, circuit_failures=1, circuit_open_s=0.1)

    assert watch.outcomes == ["status", "ok", "ok"]


def test_a_probe_that_is_cancelled_lets_the_next_caller_probe() -> None:
    with ScriptedUpstream([error(500), hang(), answer(chat_answer("Ja"))]) as server:

        async def use(upstream: Upstream) -> Any:
            with pytest.raises(UpstreamError):
                await asking(upstream)
            await asyncio.sleep(0.12)
            probe = asyncio.ensure_future(asking(upstream))
            while len(server.requests) < 2:
                await asyncio.sleep(0.01)
            with pytest.raises(UpstreamError, match="until another request has got through"):
                await asking(upstream)
            probe.cancel()
            await asyncio.gather(probe, return_exceptions=True)
            return await asking(upstream)

        found = with_upstream(server.url, use, max_retries=0, circuit_failures=1, circuit_open_s=0.1)

    assert found == chat_answer("Ja")
