"""Many clients at once, patient or not, and what is wrong with what they got.

In: a server's address, the keys by name, and requests. Out: a count of every outcome, and one line for each answer that
is not right.
"""

import asyncio
import json
import math
import random
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx2

from tests.server.soak.traffic import Ask

_PATIENCE_S = 120


@dataclass
class Outcome:
    """What came of the requests so far; `replayed` are the answers to the requests that must always have the same."""

    counts: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    replayed: dict[str, str] = field(default_factory=dict)

    @property
    def answered(self) -> int:
        return sum(self.counts.values())


async def send_all(
    url: str, keys: Mapping[str, str], asks: Iterable[Ask], seed: int, most: int = 24
) -> Outcome:
    """Send every request, at most `most` at once and mostly fewer."""
    outcome, rng, waiting = Outcome(), random.Random(seed), iter(asks)
    limits = httpx2.Limits(max_connections=None, max_keepalive_connections=most)
    async with httpx2.AsyncClient(base_url=url, timeout=_PATIENCE_S, limits=limits) as client:

        async def one_after_the_other(number: int) -> None:
            for ask in waiting:
                if (
                    rng.random() < 0.02 * number
                ):  # the later clients pause, so that concurrency goes up and down
                    await asyncio.sleep(rng.random())
                await _send(client, keys, ask, outcome, rng)

        await asyncio.gather(*(one_after_the_other(number) for number in range(most)))
    return outcome


async def _send(
    client: httpx2.AsyncClient, keys: Mapping[str, str], ask: Ask, outcome: Outcome, rng: random.Random
) -> None:
    headers = {"content-type": "application/json", **ask.headers}
    if ask.key is not None:
        headers["authorization"] = f"Bearer {keys.get(ask.key, ask.key)}"
    request = client.build_request(ask.method, ask.path, content=ask.body, headers=headers)
    try:
        async with asyncio.timeout(rng.random() / 2 if ask.patience == "leave" else _PATIENCE_S):
            response = await client.send(request, stream=True)
            try:
                body = await _read(response, ask, rng)
            finally:
                await response.aclose()
    except TimeoutError:
        if ask.patience != "leave":
            outcome.problems.append(f"{ask.kind}: no answer within {_PATIENCE_S} s")
        outcome.counts["left"] += 1
        return
    except httpx2.TransportError as error:
        if 413 not in ask.right:  # a server need not read on what it refuses
            outcome.problems.append(f"{ask.kind}: {type(error).__name__}: {error}")
        outcome.counts["broken"] += 1
        return
    if body is None:
        outcome.counts["left"] += 1
        return
    outcome.counts[str(response.status_code)] += 1
    for problem in _problems(ask, response, body, outcome):
        outcome.problems.append(f"{ask.kind}: {problem}: {ask.body[:300]!r} -> {body[:300]}")


async def _read(response: httpx2.Response, ask: Ask, rng: random.Random) -> str | None:
    """The body; None where the client left in the middle of it."""
    parts: list[bytes] = []
    leave_at = rng.randint(1, 6)
    async for part in response.aiter_raw():
        parts.append(part)
        if ask.patience == "slow":
            await asyncio.sleep(0.05)
        if ask.patience == "leave" and len(parts) == leave_at:
            return None
    return b"".join(parts).decode()


def _problems(ask: Ask, response: httpx2.Response, body: str, outcome: Outcome) -> Iterable[str]:
    """What is wrong with an answer."""
    status = response.status_code
    if "x-request-id" not in response.headers:
        yield "no x-request-id"
    if status == 429 and "retry-after" not in response.headers:
        yield "not told when to come back"
    if status not in ask.right:
        yield f"{status} in place of {ask.right}"
        return
    if status >= 400:
        if ask.path.startswith("/v1") and not _message(body):
            yield "an error without a message"
    elif ask.is_stream:
        yield from _stream_problems(ask, body)
    elif ask.has_uncertainty:
        answer = json.loads(body)
        for choice in answer["choices"]:
            yield from _numbers(choice.get("uncertainty"))
        if ask.replayed is not None:
            text = json.dumps([choice["message"] for choice in answer["choices"]], sort_keys=True)
            if outcome.replayed.setdefault(ask.replayed, text) != text:
                yield f"another answer than before: {outcome.replayed[ask.replayed]}"


def _message(body: str) -> Any:
    try:
        return json.loads(body)["error"]["message"]
    except (ValueError, KeyError, TypeError):
        return None


def _stream_problems(ask: Ask, body: str) -> Iterable[str]:
    """What is wrong with a stream that ended by itself."""
    if ask.path.startswith("/v1/c") and not body.endswith("data: [DONE]\n\n"):
        yield f"a stream that does not end: ...{body[-200:]}"
    if not ask.has_uncertainty:
        return
    lines = [line.removeprefix("data: ") for line in body.split("\n") if line.startswith("data: {")]
    events = [json.loads(line) for line in lines]
    if any("error" in event for event in events):
        if ask.kind != "route":  # an upstream may fail after its first words
            yield "an error in a stream"
        return
    ends = [choice for event in events for choice in event.get("choices", ()) if choice.get("finish_reason")]
    if not ends:
        yield "no choice ended"
    for choice in ends:
        yield from _numbers(choice.get("uncertainty"))


def _numbers(uncertainty: Any) -> Iterable[str]:
    """What is wrong with the numbers of one choice."""
    if not uncertainty:
        yield "a choice without its uncertainty"
        return
    if uncertainty["num_tokens"] < 1:
        yield "nothing was judged"
    weights = uncertainty["member_weights"]
    if not math.isclose(sum(weights), 1, abs_tol=1e-6):
        yield f"weights that sum to {sum(weights)}"
    if not -1e-9 <= uncertainty["mutual_information"] <= math.log(len(weights)) + 1e-9:
        yield f"mutual information {uncertainty['mutual_information']}"
