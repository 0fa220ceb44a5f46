"""How long a newcomer would wait: against queues that are simulated, and behind the gate."""

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from softspec.engine.meter import Meter
from softspec.server.access.access import Access
from softspec.server.access.queue import Queue
from softspec.server.access.settings import AccessSettings
from tests.support.asgi_visit import visiting
from tests.support.fake_engine import AGREED, ENSEMBLE, FakeEngine, make_app

FASTEST, SLOWEST = 0.5, 2.0


class Simulated:
    """A queue in a time of its own; whoever is in it gets a first token in turn."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.queue = Queue(lambda: self.now)
        self.meters: list[Meter] = []
        self.visits: list[ExitStack] = []

    def come(self) -> None:
        meter, visit = Meter(), ExitStack()
        visit.enter_context(self.queue.waiting(meter))
        self.meters.append(meter)
        self.visits.append(visit)

    def first_tokens(self, count: int = 1) -> None:
        for _ in range(count):
            self.meters.pop(0).count(1, self.now)
            self.visits.pop(0).close()

    def leave(self, place: int) -> None:
        self.meters.pop(place)
        self.visits.pop(place).close()


@settings(suppress_health_check=[HealthCheck.too_slow])  # of a busy machine
@given(
    before=st.lists(st.floats(FASTEST, SLOWEST), min_size=1, max_size=30),
    after=st.lists(st.floats(FASTEST, SLOWEST), min_size=1, max_size=30),
)
def test_estimate_of_a_server_of_one_is_as_far_off_as_requests_differ(
    before: list[float], after: list[float]
) -> None:
    """The true wait is until the last of those who wait now has a first token, and then comes the newcomer's."""
    simulated = Simulated()
    for _ in (*before, *after):
        simulated.come()
    for seconds in before:
        simulated.now += seconds
        simulated.first_tokens()

    told = simulated.queue.wait()

    assert FASTEST / SLOWEST - 1e-9 <= told / sum(after) <= SLOWEST / FASTEST + 1e-9


@given(
    batch=st.integers(1, 16), step_s=st.floats(0.01, 5), steps=st.integers(1, 20), left=st.integers(1, 200)
)
def test_first_tokens_of_one_step_are_told_apart_from_as_many_steps(
    batch: int, step_s: float, steps: int, left: int
) -> None:
    simulated = Simulated()
    for _ in range(batch * steps + left):
        simulated.come()
    for _ in range(steps):
        simulated.now += step_s
        simulated.first_tokens(batch)

    assert simulated.queue.wait() == pytest.approx(left * step_s / batch)


def test_time_in_which_nobody_waits_does_not_count() -> None:
    simulated = Simulated()
    for _ in range(3):
        simulated.come()
        simulated.now += 1.0
        simulated.first_tokens()
        simulated.now += 600.0
    simulated.come()

    assert simulated.queue.wait() == pytest.approx(1.0)


@given(st.lists(st.sampled_from(["come", "begin", "leave", "later"]), max_size=60))
def test_whoever_leaves_waits_no_more_and_an_empty_queue_lets_everybody_in(events: list[str]) -> None:
    simulated = Simulated()
    for event in events:
        if event == "come":
            simulated.come()
        elif event == "later":
            simulated.now += 1.0
        elif simulated.meters:
            simulated.first_tokens() if event == "begin" else simulated.leave(-1)
        assert simulated.queue.wait() >= 0.0

    while simulated.meters:
        simulated.leave(0)

    assert simulated.queue.wait() == 0.0


def test_engine_that_hangs_is_noticed_though_it_was_fast() -> None:
    simulated = Simulated()
    for _ in range(2):
        simulated.come()
    simulated.now += 0.01
    simulated.first_tokens()

    simulated.now += 45.0

    assert simulated.queue.wait() == pytest.approx(45.0)


# Behind the gate


@dataclass
class SilentEngine(FakeEngine):
    """Says nothing until it may."""

    may_speak: asyncio.Event = field(default_factory=asyncio.Event)

    async def _events(self, request: Any, choices: Any) -> AsyncGenerator[str, None]:
        await self.may_speak.wait()
        async for event in super()._events(request, choices):
            yield event


BODY = {"model": ENSEMBLE, "messages": [{"role": "user", "content": "hello"}], "stream": True}
CHAT = "/v1/chat/completions"


def test_newcomer_who_would_wait_too_long_is_told_when_to_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        engine = SilentEngine([AGREED])
        app = make_app(engine, access=AccessSettings(max_wait_s=20))
        access: Access = app.state.softspec_access
        began = time.monotonic()
        access.queue._now = lambda: began
        async with visiting(app, CHAT, BODY) as first:
            await first.status()
            access.queue._now = lambda: began + 20.5
            async with visiting(app, CHAT, BODY) as second:
                refusal = await second.next()
                assert refusal["status"] == 503
                assert (b"retry-after", b"21") in refusal["headers"]
                assert (
                    b"would wait 20 s for its first token, and 20 s are allowed"
                    in (await second.next())["body"]
                )
            engine.may_speak.set()
            await first.task
        async with visiting(app, CHAT, BODY) as third:
            assert await third.status() == 200

    asyncio.run(scenario())


def test_client_that_goes_away_does_not_wait_any_more() -> None:
    async def scenario() -> None:
        app = make_app(SilentEngine([AGREED]), access=AccessSettings(max_wait_s=20))
        access: Access = app.state.softspec_access
        began = time.monotonic()
        async with visiting(app, CHAT, BODY) as first:
            await first.status()
            access.queue._now = lambda: began + 100
            assert access.queue.wait() >= 99
        assert access.queue.wait() == 0.0

    asyncio.run(scenario())
