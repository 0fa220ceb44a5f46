"""One request, one decision, whatever the API: Responses and Messages are judged like chat, streamed or whole.

vLLM's own front end runs here, from HTTP to its output processor; the engine core behind it follows a script.
"""

import asyncio
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import REGISTRY

from softspec.engine.trace import ChoiceTrace, RequestTrace
from softspec.errors import EngineError
from softspec.server.dialects.judged import only_choice
from softspec.server.policy.policy import Policy
from softspec.server.policy.rules import PolicyRules
from softspec.server.record.recorder import Recorder
from tests.server.chat.test_decisions import LENGTH, POLICIES, SCRIPTS, expected_decision
from tests.support.other_routes import HELLO
from tests.support.scripted_core import Said, ScriptedAsyncLLM
from tests.support.scripted_vllm import NAME, Server, serving
from tests.support.tiny import random_adapters, tiny_llama

pytestmark = pytest.mark.vllm

ROADS: dict[str, dict[str, Any]] = {
    "/v1/responses": {"input": "hello", "max_output_tokens": LENGTH},
    "/v1/messages": {"messages": HELLO, "max_tokens": LENGTH},
}
LONG = {"/v1/responses": {"max_output_tokens": 900}, "/v1/messages": {"max_tokens": 900}}
SECRET = [Said(letter, 0.9 if number == 4 else 0.1) for number, letter in enumerate("ZQXJKZQXJKZQ")]
"""Withheld at its fifth token under LIMIT; its letters are in no word that a server says."""
LIMIT = {"action": "abstain", "metric": "max_epistemic", "threshold": 0.5}
PER_TOKEN = {"token", "token_id", "bytes", "log_prob", "total_entropy", "aleatoric_entropy", "epistemic"}


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    from vllm.entrypoints.anthropic.api_router import router as anthropic_router
    from vllm.entrypoints.openai.responses.api_router import router as responses_router

    base = tiny_llama(tmp_path_factory.mktemp("models") / "tiny-base")
    folder = tmp_path_factory.mktemp("ensemble")
    with serving(random_adapters(base, folder, num_members=2), engine_of=ScriptedAsyncLLM) as server:
        server.engine.play(SECRET)
        server.wait_until_ready()
        server.app.include_router(anthropic_router, prefix="/stock")
        server.app.include_router(responses_router, prefix="/stock")
        yield server


@pytest.fixture
def server(running: Server) -> Server:
    running.engine.play(SECRET)
    return running


def events_of(text: str) -> list[dict[str, Any]]:
    """The JSON of server-sent events, whose names must be their types."""
    events = []
    for block in text.split("\n\n")[:-1]:
        name, data = block.split("\n")
        events.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {events[-1]['type']}"
    return events


def stream(server: Server, path: str, **fields: Any) -> list[dict[str, Any]]:
    answer = server.post(path, {"model": NAME, **ROADS[path], "stream": True, **fields})
    assert answer.status_code == 200, answer.text
    return events_of(answer.text)


def whole(server: Server, path: str, **fields: Any) -> dict[str, Any]:
    answer = server.post(path, {"model": NAME, **ROADS[path], **fields})
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def report_of(events: list[dict[str, Any]]) -> dict[str, Any]:
    """The `uncertainty` of a streamed answer, without the seed, which differs from request to request."""
    for event in events:
        if event["type"] == "response.completed":
            return unseeded(event["response"]["uncertainty"])
        if event["type"] == "message_delta":
            return unseeded(event["uncertainty"])
    raise AssertionError(f"no verdict in {events}")


def unseeded(report: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in report.items() if key != "seed"}


def usage_of(events: list[dict[str, Any]]) -> int:
    """The tokens that a streamed answer is said to have cost."""
    last = next(event for event in events if event["type"] in ("response.completed", "message_delta"))
    return int(last.get("response", last)["usage"]["output_tokens"])


def text_of(events: list[dict[str, Any]]) -> str:
    """The text that a client would have put together."""
    deltas = [
        event["delta"] for event in events if event["type"].endswith(("output_text.delta", "block_delta"))
    ]
    return "".join(delta if isinstance(delta, str) else delta["text"] for delta in deltas)


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: " ".join(map(str, policy.values())))
@pytest.mark.parametrize("name", SCRIPTS)
@pytest.mark.parametrize("path", ROADS)
def test_decision_is_that_of_chat_streamed_and_whole(
    server: Server, path: str, name: str, policy: dict[str, Any]
) -> None:
    asked = {"policy": {"action": "abstain", **policy}}
    server.engine.play(SCRIPTS[name])

    chat = server.chat(max_tokens=LENGTH, extra_body={"uncertainty": asked}).choices[0].uncertainty
    reports = [unseeded(whole(server, path, uncertainty=asked)["uncertainty"])]
    reports.append(report_of(stream(server, path, uncertainty=asked)))

    assert reports == [unseeded(chat)] * 2
    assert chat["decided_at"] == expected_decision(SCRIPTS[name], policy)


@pytest.mark.parametrize("burst", [1, 2, 5, LENGTH])
@pytest.mark.parametrize("path", ROADS)
def test_chunks_of_several_tokens_change_nothing(server: Server, path: str, burst: int) -> None:
    server.engine.play(SECRET, burst=burst)

    events = stream(server, path, uncertainty={"policy": LIMIT})

    assert report_of(events)["decided_at"] == usage_of(events) == 5
    assert "ZQXJK".startswith(text_of(events))
    assert len(text_of(events)) < 5


@pytest.mark.parametrize("path", ROADS)
def test_generation_stops_at_the_token_that_decides(server: Server, path: str) -> None:
    core = server.engine.play(SECRET)

    answer = whole(server, path, uncertainty={"policy": LIMIT})
    events = stream(server, path, uncertainty={"policy": LIMIT})

    assert answer["usage"]["output_tokens"] == usage_of(events) == 5
    assert [state.said for state in core.said] == [5, 5]
    assert core.aborted == [state.request.request_id for state in core.said]


@pytest.mark.parametrize("path", ROADS)
def test_nothing_of_a_withheld_answer_is_in_it(server: Server, path: str) -> None:
    extra = {"enable_response_messages": True, "include": ["message.output_text.logprobs"], "top_logprobs": 2}
    asked = {"policy": LIMIT, "detail": "tokens"}

    answer = server.post(
        path,
        {"model": NAME, **ROADS[path], "uncertainty": asked, **(extra if path == "/v1/responses" else {})},
    )

    assert not set("ZQXJK") & set(answer.text.replace(answer.json()["id"], ""))
    assert "tokens" not in answer.json()["uncertainty"]
    assert answer.headers["x-softspec-decision"] == "abstain"


@pytest.mark.parametrize("hold", [1, 4, 5, 99])
@pytest.mark.parametrize("path", ROADS)
def test_held_tokens_are_not_sent_before_all_of_them_are_judged(server: Server, path: str, hold: int) -> None:
    asked = {"policy": {**LIMIT, "hold_tokens": hold}}

    withheld = stream(server, path, uncertainty=asked)
    kept = stream(server, path, uncertainty={"policy": {**asked["policy"], "threshold": 2}})

    assert text_of(withheld) == ("ZQXJ" if hold < 5 else "")
    assert text_of(kept) == "ZQXJKZQXJKZQ"


@pytest.mark.parametrize("path", ROADS)
def test_numbers_of_the_tokens_come_with_their_events(server: Server, path: str) -> None:
    answer = whole(server, path, uncertainty={"detail": "tokens"})
    events = stream(server, path, uncertainty={"detail": "tokens"})

    streamed = [token for event in events for token in event.get("uncertainty", {}).get("tokens", [])]
    assert streamed == answer["uncertainty"]["tokens"]
    assert "".join(token["token"] for token in streamed) == "ZQXJKZQXJKZQ"
    assert set(streamed[0]) >= PER_TOKEN


@pytest.mark.parametrize("path", ROADS)
def test_detail_none_leaves_the_decision(server: Server, path: str) -> None:
    found = whole(server, path, uncertainty={"detail": "none", "policy": LIMIT})["uncertainty"]

    assert set(found) == {"decision", "reason", "decided_at"}
    assert report_of(stream(server, path, uncertainty={"detail": "none", "policy": LIMIT})) == found


@pytest.mark.parametrize("path", ROADS)
def test_requests_are_counted_as_those_of_chat(server: Server, path: str) -> None:
    def counted() -> list[float]:
        labels = {"model": NAME, "decision": "abstain"}
        names = ("softspec_requests_total", "softspec_choices_total")
        first = REGISTRY.get_sample_value("softspec_time_to_first_token_seconds_count", {"model": NAME})
        return [*(REGISTRY.get_sample_value(name, labels) or 0.0 for name in names), first or 0.0]

    before = counted()
    whole(server, path, uncertainty={"policy": LIMIT})
    stream(server, path, uncertainty={"policy": LIMIT})

    assert [now - then for now, then in zip(counted(), before, strict=True)] == [2, 2, 1]


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("path", ROADS)
def test_request_that_was_not_answered_is_kept(
    server: Server, path: str, streamed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = Recorder(tmp_path / "rows.jsonl", max_bytes=10**6, keep=1)
    keeping = replace(server.app.state.softspec_chat, recorder=recorder)
    monkeypatch.setitem(vars(server.app.state)["_state"], "softspec_chat", keeping)
    system = {"instructions": "Be brief."} if path == "/v1/responses" else {"system": "Be brief."}

    for threshold in (0.5, 2):
        asked = {"uncertainty": {"policy": {**LIMIT, "threshold": threshold}}, **system}
        stream(server, path, **asked) if streamed else whole(server, path, **asked)
    recorder.close()

    [row] = map(json.loads, (tmp_path / "rows.unanswered.jsonl").read_text().splitlines())
    assert row["messages"] == [{"role": "system", "content": "Be brief."}, *HELLO]
    assert (row["model"], row["decision"], row["uncertainty"]["decided_at"]) == (NAME, "abstain", 5)


@pytest.mark.parametrize("path", ROADS)
def test_policy_that_routes_is_refused_and_may_be_replaced_by_one_that_abstains(
    server: Server, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rules = PolicyRules(Policy("route", "max_epistemic", 0.5), upstreams=("big",))
    routing = replace(server.app.state.softspec_chat, rules=rules)
    monkeypatch.setitem(vars(server.app.state)["_state"], "softspec_chat", routing)

    refused = server.post(path, {"model": NAME, **ROADS[path]})
    answer = whole(server, path, uncertainty={"policy": {"action": "abstain"}})

    assert refused.status_code == 400
    assert f"{path} does not route" in refused.json()["error"]["message"]
    assert answer["uncertainty"]["decided_at"] == 5


@pytest.mark.parametrize("path", ROADS)
def test_client_that_goes_away_ends_the_generation(server: Server, path: str) -> None:
    core = server.engine.play([Said("a")] * 2000)
    body = json.dumps({"model": NAME, **ROADS[path], "stream": True} | LONG[path]).encode()

    async def leave_after_some_events() -> None:
        has_events, sent = asyncio.Event(), [{"type": "http.request", "body": body}]
        events = 0

        async def receive() -> dict[str, Any]:
            if not sent:
                await has_events.wait()
            return sent.pop() if sent else {"type": "http.disconnect"}

        async def send(message: dict[str, Any]) -> None:
            nonlocal events
            events += message["type"] == "http.response.body"
            if events > 9:
                has_events.set()

        scope = {
            "type": "http",
            "method": "POST",
            "path": path,
            "query_string": b"",
            "asgi": {"version": "3.0"},
        }
        headers = [(b"content-type", b"application/json")]
        await server.app({**scope, "headers": headers, "http_version": "1.1"}, receive, send)

    server.run(leave_after_some_events())

    assert core.aborted == [core.said[0].request.request_id]
    assert core.said[0].said < 900


def test_answer_of_several_generations_is_an_error() -> None:
    """One verdict on one of them would let the others pass."""
    with pytest.raises(EngineError, match="asked 2 times"):
        only_choice(RequestTrace({0: ChoiceTrace(), 1: ChoiceTrace()}))
    with pytest.raises(EngineError, match="no uncertainty"):
        only_choice(RequestTrace())


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("model", [f"{NAME}/member-0", "tiny-base"])
@pytest.mark.parametrize("path", ROADS)
def test_single_models_answer_as_they_do_in_vllm(server: Server, path: str, model: str, stream: bool) -> None:
    """vLLM's own route, put beside ours, gives the same bytes, but for ids and times."""
    asked = {"model": model, **ROADS[path], "stream": stream, "unknown": 1}

    assert normal(server.post(path, asked)) == normal(server.post(f"/stock{path}", asked))


def normal(answer: Any) -> str:
    """A response without what no two have in common."""
    assert answer.status_code == 200, answer.text
    text = re.sub(r"\b(resp|msg|chatcmpl)[-_][0-9a-f]+", r"\1", answer.text)
    return re.sub(r'"created_at":\d+', '"created_at":0', text)
