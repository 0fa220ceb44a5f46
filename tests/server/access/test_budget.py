"""How much a key may ask: with OpenAI's client, around the scripted engine."""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Thread
from typing import Any

import fakeredis
import openai
import pytest
from fastapi.testclient import TestClient

from softspec.errors import ConfigError
from softspec.server.access.access import Access, require_ready
from softspec.server.access.counts import AWAY_S, WINDOW_S, Counts
from softspec.server.access.settings import AccessSettings
from softspec.server.ops.settings import Flags, read_settings
from tests.support.asgi_visit import visiting
from tests.support.fake_engine import AGREED, ENSEMBLE, PROMPT_TOKENS, FakeEngine, client_of, make_app
from tests.support.key_files import key_file, secret

HELLO: Any = [{"role": "user", "content": "hello"}]
COST = PROMPT_TOKENS + len(AGREED)
"""Tokens of one answer."""
Asking = Callable[..., openai.OpenAI]


@pytest.fixture
def asking(tmp_path: Path) -> Asking:
    """A client with the key `mine`, which has these limits."""

    def make(**limits: int) -> openai.OpenAI:
        settings = AccessSettings(keys=key_file(tmp_path, mine=limits, other={}))
        return client_of(make_app(FakeEngine([AGREED]), access=settings), secret("mine"))

    return make


def ask(client: openai.OpenAI, **fields: Any) -> Any:
    return client.chat.completions.with_raw_response.create(
        **{"model": ENSEMBLE, "messages": HELLO, **fields}
    )


def limits_told(answer: Any, kind: str) -> tuple[int, int, str]:
    """What the headers of an answer say of one limit: how much there is, what is left, when it begins anew."""
    names = (f"x-ratelimit-{what}-{kind}" for what in ("limit", "remaining", "reset"))
    limit, left, reset = (answer.headers[name] for name in names)
    return int(limit), int(left), reset


def test_requests_above_the_limit_are_rate_limit_errors_that_say_when_to_come_back(asking: Asking) -> None:
    client = asking(requests_per_minute=2)

    told = [limits_told(ask(client), "requests") for _ in range(2)]
    with pytest.raises(openai.RateLimitError) as refused:
        ask(client)

    assert told == [(2, 1, f"{WINDOW_S}s"), (2, 0, f"{WINDOW_S}s")]
    assert limits_told(refused.value.response, "requests") == (2, 0, f"{WINDOW_S}s")
    assert refused.value.response.headers["retry-after"] == str(WINDOW_S)
    assert refused.value.code == "rate_limit_exceeded"
    assert f"'mine' may have 2 requests a minute, and they are spent: come back in {WINDOW_S} s" in str(
        refused.value
    )


def test_after_a_minute_there_is_a_new_budget(asking: Asking, monkeypatch: pytest.MonkeyPatch) -> None:
    client = asking(requests_per_minute=1)
    ask(client)
    with pytest.raises(openai.RateLimitError):
        ask(client)
    now = time.time

    monkeypatch.setattr(time, "time", lambda: now() + WINDOW_S)

    assert limits_told(ask(client), "requests")[1] == 0


def test_requests_that_were_refused_do_not_make_the_minute_longer(
    asking: Asking, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = asking(requests_per_minute=1)
    ask(client)
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + WINDOW_S - 10)

    for _ in range(3):
        with pytest.raises(openai.RateLimitError) as refused:
            ask(client)

    assert refused.value.response.headers["retry-after"] == "10"


def test_refused_requests_count_too(asking: Asking) -> None:
    client = asking(requests_per_minute=2)

    for model in ("nobody", "nobody"):
        with pytest.raises(openai.NotFoundError) as refused:
            ask(client, model=model)

    assert limits_told(refused.value.response, "requests")[1] == 0
    with pytest.raises(openai.RateLimitError):
        ask(client)


@pytest.mark.parametrize("stream", [False, True])
def test_tokens_are_counted_when_a_request_has_ended(asking: Asking, stream: bool) -> None:
    client = asking(tokens_per_minute=COST + 5)

    told = []
    for _ in range(2):
        answer = ask(client, stream=stream)
        _ = list(answer.parse())
        told.append(limits_told(answer, "tokens")[1])
    with pytest.raises(openai.RateLimitError, match=f"{COST + 5} tokens a minute"):
        ask(client)

    assert told == [COST + 5, 5]


def test_spent_tokens_forbid_no_request_that_costs_none(asking: Asking) -> None:
    client = asking(tokens_per_minute=1)
    ask(client)
    with pytest.raises(openai.RateLimitError):
        ask(client)

    with pytest.raises(openai.NotFoundError):  # as the scripted server has no such route
        client.models.list()


def test_keys_have_budgets_of_their_own(asking: Asking) -> None:
    client = asking(requests_per_minute=1)
    ask(client)

    assert ask(client.with_options(api_key=secret("other"))).status_code == 200


def test_key_without_limits_is_told_of_none(asking: Asking) -> None:
    assert not [name for name in ask(asking()).headers if name.startswith("x-ratelimit")]


# At once


@dataclass
class HeldEngine(FakeEngine):
    """Sends a chunk of a stream, and the others once it is let go."""

    may_go_on: asyncio.Event = field(default_factory=asyncio.Event)

    async def _events(self, request: Any, choices: Any) -> AsyncGenerator[str, None]:
        async for event in super()._events(request, choices):
            yield event
            await self.may_go_on.wait()


BODY = {"model": ENSEMBLE, "messages": HELLO, "stream": True}
MINE = {"authorization": f"Bearer {secret('mine')}"}


def test_first_chunk_of_a_stream_comes_while_the_engine_is_held(tmp_path: Path) -> None:
    async def scenario() -> None:
        engine = HeldEngine([AGREED])
        app = make_app(engine, access=AccessSettings(keys=key_file(tmp_path, mine={"tokens_per_minute": 99})))
        async with visiting(app, "/v1/chat/completions", BODY, MINE) as visit:
            assert await visit.status() == 200
            assert b"data: " in (await visit.next())["body"]
            assert not visit.task.done()
            engine.may_go_on.set()

    asyncio.run(scenario())


@pytest.mark.parametrize("ends_by", ["its end", "its client"])
def test_requests_at_once_are_limited_until_one_ends(tmp_path: Path, ends_by: str) -> None:
    async def scenario() -> None:
        engine = HeldEngine([AGREED])
        app = make_app(
            engine, access=AccessSettings(keys=key_file(tmp_path, mine={"concurrent_requests": 1}))
        )
        async with visiting(app, "/v1/chat/completions", BODY, MINE) as first:
            assert await first.status() == 200
            await first.next()
            async with visiting(app, "/v1/chat/completions", BODY, MINE) as second:
                refusal = await second.next()
                assert refusal["status"] == 429
                assert (b"retry-after", b"1") in refusal["headers"]
            if ends_by == "its end":
                engine.may_go_on.set()
            else:
                first.leave()
            await first.task
        engine.may_go_on.set()
        async with visiting(app, "/v1/chat/completions", BODY, MINE) as third:
            assert await third.status() == 200

    asyncio.run(scenario())


def test_tokens_of_a_stream_whose_client_left_are_counted(tmp_path: Path) -> None:
    async def scenario() -> None:
        settings = AccessSettings(keys=key_file(tmp_path, mine={"tokens_per_minute": 100}))
        app = make_app(HeldEngine([AGREED]), access=settings)
        async with visiting(app, "/v1/chat/completions", BODY, MINE) as visit:
            await visit.status()
            await visit.next()
            visit.leave()
            await visit.task

        access: Access = app.state.softspec_access
        assert (await access._counts.read("mine/tokens")).amount >= PROMPT_TOKENS + 1

    asyncio.run(scenario())


# In Redis


@contextmanager
def running_redis(port: int = 0) -> Iterator[fakeredis.TcpFakeServer]:
    server = fakeredis.TcpFakeServer(("127.0.0.1", port), server_type="redis")
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def redis() -> Iterator[fakeredis.TcpFakeServer]:
    with running_redis() as server:
        yield server


def address(server: fakeredis.TcpFakeServer) -> str:
    return f"redis://127.0.0.1:{server.server_address[1]}/0"


def test_replicas_that_share_a_redis_share_budgets(tmp_path: Path, redis: fakeredis.TcpFakeServer) -> None:
    keys = key_file(tmp_path, mine={"requests_per_minute": 2, "tokens_per_minute": 1000})
    settings = AccessSettings(keys=keys, storage=address(redis))

    def asked_of_a_new_replica() -> Any:
        with TestClient(make_app(FakeEngine([AGREED]), access=settings)) as http:
            return http.post(
                "/v1/chat/completions", json={"model": ENSEMBLE, "messages": HELLO}, headers=MINE
            )

    answers = [asked_of_a_new_replica() for _ in range(3)]

    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert [limits_told(answer, "requests")[1] for answer in answers] == [1, 0, 0]
    assert [limits_told(answer, "tokens")[1] for answer in answers] == [1000, 1000 - COST, 1000 - 2 * COST]


def test_replicas_count_alone_while_redis_is_away_and_together_again_when_it_is_back(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Nobody is locked out, and nobody asks without limit either."""
    seconds = 100.0

    async def count(replicas: Sequence[Counts]) -> list[int]:
        return [(await replica.add("mine/requests", 1)).amount for replica in replicas]

    async def scenario() -> list[list[int]]:
        nonlocal seconds
        with running_redis() as redis:
            replicas = [Counts(address(redis), now=lambda: seconds) for _ in range(2)]
            told = [await count(replicas)]
        told.append(await count(replicas))
        with running_redis(redis.server_address[1]):
            told.append(await count(replicas))
            seconds += AWAY_S
            told.append(await count(replicas))
            for replica in replicas:
                await replica.aclose()
        return told

    assert asyncio.run(scenario()) == [[1, 2], [1, 1], [2, 2], [1, 2]]
    assert [message.partition(":")[0] for message in caplog.messages] == [
        *["what API keys spend is counted in this replica alone"] * 2,
        *["what API keys spend is counted for all replicas again"] * 2,
    ]


def test_redis_that_is_not_there_ends_the_start(tmp_path: Path) -> None:
    settings = AccessSettings(keys=key_file(tmp_path, mine={}), storage="redis://127.0.0.1:1/0")

    with pytest.raises(ConfigError, match=r"no Redis answers at 127\.0\.0\.1:1: start it, or"):
        asyncio.run(require_ready(settings, {}))


def test_redis_that_is_there_lets_the_server_start(tmp_path: Path, redis: fakeredis.TcpFakeServer) -> None:
    asyncio.run(require_ready(AccessSettings(storage=address(redis)), {}))


def test_address_with_a_password_comes_from_a_variable_and_is_never_shown() -> None:
    settings = AccessSettings(storage_env="REDIS")

    with pytest.raises(ConfigError) as unreachable:
        asyncio.run(require_ready(settings, {"REDIS": "redis://:s3cret@127.0.0.1:1/0"}))
    with pytest.raises(ConfigError, match="the environment variable REDIS is no address of a Redis"):
        asyncio.run(require_ready(settings, {}))

    assert "s3cret" not in str(unreachable.value)


@pytest.mark.parametrize(
    ("storage", "complaint"),
    [
        ("storage: 'redis://:s3cret@h/0'", "put the address into an environment variable"),
        (
            "storage: 'redsi://s3cret'",
            "access.storage is no address of a Redis: expected one like redis://host",
        ),
        ("storage: 'redis://s3cret', storage_env: REDIS", "access has storage and storage_env: keep one"),
        ("storage_env: REDIS", "the environment variable REDIS is no address of a Redis"),
    ],
)
def test_storage_that_cannot_be_ends_the_start_without_being_shown(
    tmp_path: Path, storage: str, complaint: str
) -> None:
    file = tmp_path / "server.yaml"
    file.write_text(f"access: {{{storage}}}")

    with pytest.raises(ConfigError) as error:
        read_settings([Path("my")], {"REDIS": "s3cret"}, Flags(), file)

    assert complaint in str(error.value)
    assert "s3cret" not in str(error.value)
