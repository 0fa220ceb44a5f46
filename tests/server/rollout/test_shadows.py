"""Shadows are asked what others are asked, measured and dropped; whoever asks does not notice."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import pytest
from fastapi import Request, Response
from prometheus_client import CollectorRegistry

from softspec.engine.meter import current_meter
from softspec.errors import ConfigError, EngineError
from softspec.server.access.callers import current_caller
from softspec.server.access.settings import AccessSettings
from softspec.server.observe.account import Account
from softspec.server.record.recorder import Recorder
from softspec.server.rollout.aliases import Aliases
from softspec.server.rollout.rollout import Rollout
from softspec.server.rollout.settings import Shadow
from softspec.server.rollout.shadows import MOST_AT_ONCE, Shadows
from softspec.server.upstream.settings import UpstreamSettings
from tests.support.fake_engine import AGREED, PROMPT_TOKENS, TORN, FakeEngine, make_app
from tests.support.key_files import key_file, secret

CHAT = "/v1/chat/completions"
HELLO: dict[str, dict[str, Any]] = {
    CHAT: {"messages": [{"role": "user", "content": "a secret"}]},
    "/v1/completions": {"prompt": "a secret"},
}
ALIASES = {"my": {"demo": 1.0}}
ALL = {"demo-v2": Shadow(of="my", share=1)}


@dataclass
class TwoEngines(FakeEngine):
    """Answers for `demo`; what `demo-v2` is asked goes to `beside`, once that may answer."""

    beside: FakeEngine = field(default_factory=lambda: FakeEngine([TORN]))
    may_answer: asyncio.Event = field(default_factory=asyncio.Event)
    is_stuck: bool = False
    known_there: list[Any] = field(default_factory=list)

    async def route(self, request: Any, raw_request: Request) -> Response:
        if request.model != "demo-v2":
            return await super().route(request, raw_request)
        self.known_there.append((current_caller.get(), current_meter.get()))
        if self.is_stuck:
            self.beside.requests.append(request)
            await raw_request.receive()
            return None  # type: ignore[return-value]  # as vLLM's route where the client went away
        await self.may_answer.wait()
        return await self.beside.route(request, raw_request)


class Running:
    """A server with a shadow, and a client of it."""

    def __init__(self, engine: TwoEngines, http: httpx2.AsyncClient, registry: CollectorRegistry) -> None:
        self.engine, self.http, self._registry = engine, http, registry

    async def ask(self, path: str = CHAT, **fields: Any) -> httpx2.Response:
        return await self.http.post(path, json={"model": "my", **HELLO[path], **fields})

    def counted(self, outcome: str, of: str = "my") -> float:
        """The series is there from the first."""
        labels = {"model": "demo-v2", "of": of, "outcome": outcome}
        counted = self._registry.get_sample_value("softspec_shadow_requests_total", labels)
        assert counted is not None
        return counted

    def value(self, name: str, **labels: str) -> float:
        return self._registry.get_sample_value(name, {"model": "demo-v2", **labels}) or 0

    def num_upstream_requests(self) -> float:
        metrics = [each for each in self._registry.collect() if each.name == "softspec_upstream_requests"]
        assert len(metrics) == 1
        return sum(sample.value for sample in metrics[0].samples)

    async def until(self, is_so: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not is_so():
                await asyncio.sleep(0)


def with_shadow(
    scenario: Callable[[Running], Any],
    engine: TwoEngines | None = None,
    shadows: Mapping[str, Shadow] = ALL,
    headers: Mapping[str, str] | None = None,
    **given: Any,
) -> Any:
    """What a scenario gives with a server whose shadow may answer at once, unless the engine is given."""

    @asynccontextmanager
    async def running() -> AsyncIterator[Running]:
        registry, asked = CollectorRegistry(), engine or TwoEngines([AGREED])
        if engine is None:
            asked.may_answer.set()
        names = ("demo", "demo-v2")
        app = make_app(asked, None, registry, ensembles=names, aliases=ALIASES, shadows=shadows, **given)
        transport = httpx2.ASGITransport(app)
        async with (
            app.router.lifespan_context(app),
            httpx2.AsyncClient(transport=transport, base_url="http://server", headers=headers) as http,
        ):
            yield Running(asked, http, registry)

    async def work() -> Any:
        async with running() as server:
            return await scenario(server)

    return asyncio.run(work())


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("path", HELLO)
def test_shadow_is_measured_and_the_caller_hears_what_they_would_without(path: str, stream: bool) -> None:
    more = {"stream_options": {"include_usage": True}} if stream else {}
    fields = {"stream": stream, "temperature": 0.5, "request_id": "mine", **more}

    async def scenario(server: Running) -> str:
        answer = await server.ask(path, **fields)
        assert answer.status_code == 200
        if server.engine.may_answer.is_set():
            await server.until(lambda: server.counted("answered") == 1)
            [asked] = server.engine.beside.requests
            assert (asked.stream, asked.stream_options, asked.temperature) == (False, None, 0.5)
            assert asked.request_id != "mine"
            assert server.value("softspec_requests_total", decision="answer") == 1
            assert server.value("softspec_mutual_information_nats_count") == 1
            assert server.value("softspec_mutual_information_nats_sum") > 0
        return answer.text

    with_it = with_shadow(scenario)
    without = with_shadow(scenario, TwoEngines([AGREED]), shadows={})

    assert with_it == without


def test_caller_does_not_wait_for_the_shadow() -> None:
    async def scenario(server: Running) -> None:
        answer = await server.ask()
        assert answer.status_code == 200
        assert server.counted("answered") == 0
        server.engine.may_answer.set()
        await server.until(lambda: server.counted("answered") == 1)

    with_shadow(scenario, TwoEngines([AGREED]))


def test_shadow_that_fails_is_counted_and_said_once_without_text(caplog: pytest.LogCaptureFixture) -> None:
    engine = TwoEngines([AGREED], beside=FakeEngine([TORN], failure=EngineError("of 'a secret'")))
    engine.may_answer.set()

    async def scenario(server: Running) -> list[int]:
        statuses = [(await server.ask()).status_code for _ in range(2)]
        await server.until(lambda: server.counted("failed") == 2)
        return statuses

    with caplog.at_level(logging.WARNING, logger="softspec"):
        statuses = with_shadow(scenario, engine)

    assert statuses == [200, 200]
    [line] = [message for message in caplog.messages if "shadow" in message]
    assert line == "the shadow 'demo-v2' of 'my' fails (EngineError); nobody who asks notices"


def test_no_more_than_a_few_are_asked_at_once() -> None:
    async def scenario(server: Running) -> None:
        for _ in range(MOST_AT_ONCE + 2):
            await server.ask()
        assert server.counted("dropped") == 2
        server.engine.may_answer.set()
        await server.until(lambda: server.counted("answered") == MOST_AT_ONCE)

    with_shadow(scenario, TwoEngines([AGREED]))


def test_request_that_was_refused_has_no_shadow() -> None:
    async def scenario(server: Running) -> None:
        assert (await server.ask(temprature=1)).status_code == 400
        assert (await server.ask(model="nobody")).status_code == 404
        await server.ask()
        await server.until(lambda: server.counted("answered") == 1)
        assert len(server.engine.beside.requests) == 1

    with_shadow(scenario)


def test_shadow_costs_the_key_nothing_and_is_not_logged(tmp_path: Path) -> None:
    keys = key_file(tmp_path, user={"models": ["my"], "tokens_per_minute": 1000, "concurrent_requests": 1})
    accounts: list[Account] = []

    async def scenario(server: Running) -> list[str]:
        left = []
        for number in (1, 2):
            answer = await server.ask()
            left.append(answer.headers["x-ratelimit-remaining-tokens"])
            await server.until(lambda asked=number: server.counted("answered") == asked)  # type: ignore[misc]
        assert server.engine.known_there == [(None, None)] * 2
        return left

    left = with_shadow(
        scenario,
        headers={"authorization": f"Bearer {secret('user')}"},
        access=AccessSettings(keys=keys),
        observers=[accounts.append],
    )

    cost = PROMPT_TOKENS + len(AGREED)
    assert left == ["1000", str(1000 - cost)]
    assert [(account.model, account.meter.completion_tokens) for account in accounts] == [("demo", 4)] * 2


def test_decision_to_route_is_counted_and_no_upstream_is_asked(tmp_path: Path) -> None:
    policy = {"action": "route", "metric": "max_epistemic", "threshold": 0.5}
    recorder = Recorder(tmp_path / "rows.jsonl", 1_000_000, 1, lambda _: None)

    async def scenario(server: Running) -> None:
        answer = await server.ask(uncertainty={"policy": policy})
        assert answer.json()["choices"][0]["uncertainty"]["decision"] == "answer"
        await server.until(lambda: server.counted("answered") == 1)
        assert server.value("softspec_requests_total", decision="route") == 1
        assert server.num_upstream_requests() == 0

    nobody = UpstreamSettings(url="http://127.0.0.1:9", model="m")
    with_shadow(scenario, upstreams={"big": nobody}, recorder=recorder)
    recorder.close()

    assert not [path for path in tmp_path.iterdir() if path.read_text()]


def test_shadow_that_is_still_asked_ends_with_the_server() -> None:
    async def scenario(server: Running) -> None:
        await server.ask()
        await server.until(lambda: len(server.engine.beside.requests) == 1)

    engine = TwoEngines([AGREED], is_stuck=True)
    with_shadow(scenario, engine)

    assert len(engine.beside.requests) == 1


def test_share_is_changed_while_the_server_runs() -> None:
    async def scenario(server: Running) -> None:
        none = {"shadows": {"demo-v2": {"of": "demo", "share": 0}}}
        told = (await server.http.post("/v1/aliases", json=none)).json()
        assert told["shadows"] == {"demo-v2": {"of": "demo", "share": 0}}
        await server.ask()
        again = {"shadows": {"demo-v2": {"of": "demo", "share": 1}}}
        await server.http.post("/v1/aliases", json=again)
        await server.ask()
        await server.until(lambda: server.counted("answered", of="demo") == 1)
        assert len(server.engine.beside.requests) == 1

    with_shadow(scenario)


# Whose turn it is


def asked_of(shadows: dict[str, Shadow], name: str, model: str, drawn: float = 0.0) -> list[str]:
    """The shadows that are asked when a request draws this number."""
    asked: list[str] = []

    async def ask(shadow: str) -> None:
        asked.append(shadow)

    async def work() -> None:
        follows = Shadows(shadows, draw=lambda: drawn)
        follows.follow(name, model, ask)
        await follows.aclose()

    asyncio.run(work())
    return asked


@pytest.mark.parametrize(
    ("of", "name", "model", "is_asked"),
    [
        ("my", "my", "demo", True),
        ("demo", "my", "demo", True),
        ("demo", "demo", "demo", True),
        ("my", "demo", "demo", False),
        ("my", "my", "demo-v2", False),
        ("demo", "my", "other", False),
    ],
)
def test_shadow_follows_an_alias_or_an_ensemble_and_never_itself(
    of: str, name: str, model: str, is_asked: bool
) -> None:
    assert asked_of({"demo-v2": Shadow(of=of, share=1)}, name, model) == ["demo-v2"] * is_asked


@pytest.mark.parametrize(
    ("share", "drawn", "is_asked"), [(0.1, 0.099, True), (0.1, 0.1, False), (0, 0, False)]
)
def test_share_of_the_requests_is_asked(share: float, drawn: float, is_asked: bool) -> None:
    assert asked_of({"demo-v2": Shadow(of="my", share=share)}, "my", "demo", drawn) == ["demo-v2"] * is_asked


@pytest.mark.parametrize(
    ("shadow", "of", "complaint"),
    [
        ("demo-v3", "my", "the shadow 'demo-v3' is no ensemble that is served: expected demo, demo-v2"),
        ("demo-v2", "mine", "follows 'mine', which is neither an alias nor an ensemble that is served"),
    ],
)
def test_shadow_that_leads_nowhere_is_refused(shadow: str, of: str, complaint: str) -> None:
    names = ["demo", "demo-v2"]

    def rollout(share: float) -> Rollout:
        return Rollout(names, lambda: names, Aliases(ALIASES), Shadows({shadow: Shadow(of=of, share=share)}))

    rollout(0).require_served()
    with pytest.raises(ConfigError) as error:
        rollout(0.1).require_served()

    assert complaint in str(error.value)


def test_shadow_stays_served_while_it_has_a_share() -> None:
    names = ["demo", "demo-v2"]
    rollout = Rollout(names, lambda: names, Aliases(ALIASES), Shadows(ALL))

    with (
        pytest.raises(ConfigError, match="'demo-v2' is the shadow of 'my': give it share 0 first"),
        rollout.unloading("demo-v2"),
    ):
        pass


def test_fields_of_a_change_hold_all_or_none(tmp_path: Path) -> None:
    async def scenario(server: Running) -> None:
        both = {"alias": "my", "weights": {"demo-v2": 1}, "shadows": {"nobody": {"of": "my", "share": 1}}}
        assert (await server.http.post("/v1/aliases", json=both)).status_code == 400
        told = (await server.http.get("/v1/aliases")).json()
        assert json.dumps(told["aliases"]) == json.dumps(ALIASES)

    with_shadow(scenario)
