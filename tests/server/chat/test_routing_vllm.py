"""Routing through vLLM's own front end: what is computed, what is sent on, and what happens when the client leaves.

The engine core behind it follows a script, and the upstream is a scripted server on a real socket.
"""

import asyncio
import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import httpx2
import openai
import pytest
import uvicorn

from softspec.server.policy.rules import PolicyRules
from softspec.server.upstream.settings import UpstreamSettings
from softspec.server.upstream.upstreams import Upstreams
from tests.server.chat.test_decisions import (
    CALM,
    EARLY,
    HUMP,
    LENGTH,
    POLICIES,
    SCRIPTS,
    expected_decision,
)
from tests.support.scripted_core import Said, ScriptedAsyncLLM
from tests.support.scripted_upstream import (
    USAGE,
    Script,
    ScriptedUpstream,
    answer,
    chat_answer,
    chat_stream,
    error,
    event,
    hang,
)
from tests.support.scripted_vllm import HELLO, NAME, Server, serving
from tests.support.tiny import random_adapters, tiny_llama

pytestmark = pytest.mark.vllm

STRICT = {"metric": "max_epistemic", "threshold": 0.45}
TOOL: Any = {"type": "function", "function": {"name": "paint", "parameters": {"type": "object"}}}
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n"


class NoWatch:
    def upstream_answered(self, *_: Any) -> None:
        """Nothing."""

    upstream_circuit = upstream_answered


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    base = tiny_llama(tmp_path_factory.mktemp("models") / "tiny-base")
    folder = tmp_path_factory.mktemp("ensemble")
    tools = ("--enable-auto-tool-choice", "--tool-call-parser", "hermes")
    with serving(random_adapters(base, folder, num_members=2), *tools, engine_of=ScriptedAsyncLLM) as server:
        server.engine.play(CALM)
        server.wait_until_ready()
        yield server


@contextmanager
def routing(server: Server, *scripts: Script) -> Iterator[ScriptedUpstream]:
    """The server with one upstream, which follows these scripts."""
    before = server.app.state.softspec_chat
    with ScriptedUpstream(scripts) as upstream:
        settings = {"large": UpstreamSettings(url=upstream.url, model="big", max_retries=0)}
        upstreams = Upstreams(settings, {}, NoWatch())
        server.app.state.softspec_chat = replace(
            before, upstreams=upstreams, rules=PolicyRules(before.rules.default, ("large",))
        )
        try:
            yield upstream
        finally:
            server.run(upstreams.aclose())
            server.app.state.softspec_chat = before


def routed(policy: dict[str, Any] = STRICT, **fields: Any) -> dict[str, Any]:
    return {
        "extra_body": {"uncertainty": {"policy": {"action": "route", **policy}}},
        "max_tokens": LENGTH,
        **fields,
    }


def outcome(at: int | None, held: int) -> tuple[str, int | None]:
    """What becomes of a stream of which so many tokens are held, by the rule: in time it is routed, else withheld."""
    if at is None:
        return "answer", None
    return ("route" if at <= max(held, 1) else "abstain"), at


@pytest.mark.parametrize("held", [0, 2, 16])
@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: " ".join(map(str, policy.values())))
@pytest.mark.parametrize("name", SCRIPTS)
def test_metrics_that_rise_and_fall_decide_alike_whole_and_streamed(
    server: Server, name: str, policy: dict[str, Any], held: int
) -> None:
    at = expected_decision(SCRIPTS[name], policy)
    fields = routed({**policy, "hold_tokens": held}, seed=1)

    with routing(server, answer(chat_answer("No."))):
        server.engine.play(SCRIPTS[name])
        whole = server.chat(**fields).choices[0]
    with routing(server, chat_stream("No", ".")):
        server.engine.play(SCRIPTS[name])
        chunks = server.stream(**fields)

    streamed = chunks[-1].choices[0]
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    decision, _ = outcome(at, held)
    sent = {"answer": "abcdefghijkl", "route": "No.", "abstain": "abcdefghijkl"[: (at or 1) - 1]}[decision]
    assert (whole.uncertainty["decision"], whole.uncertainty["decided_at"]) == outcome(at, LENGTH)
    assert (streamed.uncertainty["decision"], streamed.uncertainty["decided_at"]) == outcome(at, held)
    assert whole.message.content == ("abcdefghijkl" if at is None else "No.")
    assert text == sent
    assert ("too late to route" in str(streamed.uncertainty["reason"])) == (decision == "abstain")


@pytest.mark.parametrize("burst", [1, 2, 5, LENGTH])
@pytest.mark.parametrize("held", [1, 2, 3, 4, 16])
def test_chunks_of_several_tokens_change_nothing(server: Server, held: int, burst: int) -> None:
    at = expected_decision(HUMP, STRICT)
    server.engine.play(HUMP, burst=burst)

    with routing(server, chat_stream("No", ".")):
        chunks = server.stream(**routed({**STRICT, "hold_tokens": held}))

    uncertainty = chunks[-1].choices[0].uncertainty
    assert (uncertainty["decision"], uncertainty["decided_at"]) == outcome(at, held)
    assert uncertainty["num_tokens"] == at


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_generation_ends_where_it_is_routed_and_both_parts_are_counted(server: Server, stream: bool) -> None:
    core = server.engine.play(HUMP)

    with routing(server, chat_stream("No", ".") if stream else answer(chat_answer("No."))):
        if stream:
            chunks = server.stream(**routed(), stream_options={"include_usage": True})
            usage, choice = chunks[-1].usage, chunks[-2].choices[0]
        else:
            completion = server.chat(**routed())
            usage, choice = completion.usage, completion.choices[0]

    parts = usage.softspec
    assert (core.said[0].said, core.aborted) == (3, [core.said[0].request.request_id])
    assert parts["ensemble"]["completion_tokens"] == choice.uncertainty["num_tokens"] == 3
    assert parts["upstream"] == USAGE
    for name in USAGE:
        assert getattr(usage, name) == parts["ensemble"][name] + parts["upstream"][name]
    assert "abstained" not in choice.model_dump_json()


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_own_answer_is_whole_when_the_upstream_fails(server: Server, stream: bool) -> None:
    core = server.engine.play(HUMP)
    fields = routed({**STRICT, "on_failure": "answer"}, logprobs=True)
    server.engine.play(HUMP)
    expected = server.chat(logprobs=True, max_tokens=LENGTH).choices[0]

    core = server.engine.play(HUMP)
    with routing(server, error(500, "on fire")):
        if stream:
            chunks = server.stream(**fields)
            last = chunks[-1].choices[0]
            text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
            tokens = [
                part.token
                for chunk in chunks
                if chunk.choices[0].logprobs
                for part in chunk.choices[0].logprobs.content
            ]
        else:
            last = server.chat(**fields).choices[0]
            text = last.message.content
            tokens = [part.token for part in last.logprobs.content]

    assert (text, last.finish_reason) == ("abcdefghijkl", "length")
    assert tokens == list("abcdefghijkl")
    assert core.said[0].said == LENGTH
    assert last.uncertainty["num_tokens"] == LENGTH
    assert last.uncertainty["decided_at"] == 3
    assert last.uncertainty["log_prob"] == expected.uncertainty["log_prob"]
    assert "on fire" in last.uncertainty["reason"]


def test_late_crossing_ends_an_answer_that_would_have_been_kept(server: Server) -> None:
    core = server.engine.play(HUMP)

    with routing(server, chat_stream("No")) as upstream:
        last = server.stream(**routed({**STRICT, "on_failure": "answer", "hold_tokens": 2}))[-1].choices[0]

    assert (last.uncertainty["decision"], last.uncertainty["num_tokens"]) == ("abstain", 3)
    assert (core.said[0].said, upstream.requests) == (3, [])


def test_engine_stops_for_an_answer_that_the_upstream_gave(server: Server) -> None:
    """With on_failure answer the ensemble goes on, but not behind the end of the answer that was sent."""
    letters = "abcdefghij" * 90
    core = server.engine.play(
        [Said(letter, 0.9 if number == 2 else 0.1) for number, letter in enumerate(letters)]
    )

    with routing(server, chat_stream("No")):
        server.stream(**routed({**STRICT, "on_failure": "answer"}, max_tokens=len(letters)))

    assert core.said[0].said < len(letters)
    assert core.aborted


@pytest.mark.parametrize("held", [0, 4, 30, 99])
@pytest.mark.parametrize("tool_choice", ["auto", "required"])
def test_held_tool_calls_and_log_probabilities_arrive_as_they_would_have(
    server: Server, tool_choice: str, held: int
) -> None:
    call = '{"name": "paint", "arguments": {"c": "red"}}'
    text = f"<tool_call>{call}</tool_call>" if tool_choice == "auto" else f"[{call}]"
    fields: dict[str, Any] = {
        "tools": [TOOL],
        "tool_choice": tool_choice,
        "logprobs": True,
        "stream_options": {"include_usage": True, "continuous_usage_stats": True},
        "max_tokens": 99,
    }

    def chunks(policy: dict[str, Any]) -> str:
        server.engine.play([Said(letter) for letter in text])
        extra = {"uncertainty": {"policy": policy, "detail": "tokens"}, "return_token_ids": True}
        sent = server.stream(**fields, seed=1, extra_body=extra)
        same = [{**chunk.model_dump(), "id": "", "created": 0} for chunk in sent]
        return re.sub(r"chatcmpl-tool-\w+", "", json.dumps(same))

    policy = {"action": "abstain", "metric": "max_epistemic", "threshold": 5}
    assert chunks({**policy, "hold_tokens": held}) == chunks({"action": "answer"})


def test_upstream_gets_what_the_caller_sent_and_not_what_vllm_made_of_it(server: Server) -> None:
    """vLLM's request models write defaults into the body that they check, such as a tool_choice."""
    schema = {"name": "a", "schema": {"type": "object", "properties": {"c": {"type": "string"}}}}
    body = {
        "messages": HELLO,
        "tools": [TOOL],
        "response_format": {"type": "json_schema", "json_schema": schema},
        "max_completion_tokens": 9,
        "temperature": 0.5,
        "user": "u",
    }
    rule = {"uncertainty": {"policy": {"action": "route", **STRICT}}}
    server.engine.play(EARLY)

    with routing(server, answer(chat_answer("No."))) as upstream:
        response = server.post("/v1/chat/completions", {"model": NAME, **body, **rule})

    assert response.json()["choices"][0]["message"]["content"] == "No."
    assert upstream.requests[0].body == {"model": "big", "stream": False, **body}


def test_prompts_and_samples_are_routed_each_for_itself(server: Server) -> None:
    text = {
        "model": "big-1",
        "choices": [{"index": 0, "text": "No.", "finish_reason": "stop"}],
        "usage": USAGE,
    }
    server.engine.play(CALM, HUMP, EARLY, CALM)

    with routing(server, answer(text)) as upstream:
        completion = server.complete(**routed(n=2, prompt=["x", "y"], seed=4))

    assert [choice.text for choice in completion.choices] == ["abcdefghijkl", "No.", "No.", "abcdefghijkl"]
    asked = {(request.body["prompt"], request.body["seed"]) for request in upstream.requests}
    assert asked == {("x", 5), ("y", 4)}
    assert completion.usage.softspec["ensemble"]["completion_tokens"] == 2 * LENGTH + 3 + 1


def test_openais_helpers_read_a_routed_stream(server: Server) -> None:
    async def helper() -> Any:
        create: Any = server.client.chat.completions.stream
        async with create(model=NAME, messages=HELLO, **routed()) as stream:
            return await stream.get_final_completion()

    server.engine.play(HUMP)
    role = {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}]}
    end = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
    said = {"choices": [{"index": 0, "delta": {"content": "No."}, "finish_reason": None}]}

    with routing(server, hang(HEAD, *map(event, (role, said, end)), b"data: [DONE]\n\n")):
        completion = server.run(helper())

    message = completion.choices[0].message
    assert (message.role, message.content, message.refusal) == ("assistant", "No.", None)
    assert completion.model == "big"


@contextmanager
def on_a_socket(server: Server) -> Iterator[Callable[[], str]]:
    """The same app behind a real socket, in the server's own loop."""
    config = uvicorn.Config(server.app, port=0, lifespan="off", log_level="error")
    listening = uvicorn.Server(config)

    async def start() -> asyncio.Task[None]:
        task = asyncio.create_task(listening.serve())
        while not listening.started:
            await asyncio.sleep(0.01)
        return task

    async def stop(task: asyncio.Task[None]) -> None:
        listening.should_exit = True
        await task

    task = server.run(start())
    try:
        yield lambda: f"http://127.0.0.1:{listening.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.run(stop(task))


@pytest.mark.parametrize("begun", [False, True], ids=["before the first byte", "in the middle"])
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_client_that_leaves_cancels_the_call(server: Server, stream: bool, begun: bool) -> None:
    if begun and not stream:
        begun_with: Sequence[bytes] = (b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n{",)
    else:
        begun_with = (HEAD, event(chat_chunk_of("No"))) if begun else ()
    letters = "abcdefghij" * 90
    core = server.engine.play(
        [Said(letter, 0.9 if number == 2 else 0.1) for number, letter in enumerate(letters)]
    )
    body = {"model": NAME, "messages": HELLO, "stream": stream, "max_tokens": len(letters)}
    body["uncertainty"] = {"policy": {"action": "route", **STRICT}}

    async def leave(url: str, upstream: ScriptedUpstream) -> None:
        async with httpx2.AsyncClient() as client:
            asking = asyncio.create_task(client.post(f"{url}/v1/chat/completions", json=body, timeout=20))
            async with asyncio.timeout(20):
                while not upstream.requests:
                    await asyncio.sleep(0.01)
                await asyncio.sleep(0.1)
                assert upstream.requests[0].left_at is None
                asking.cancel()
                await asyncio.gather(asking, return_exceptions=True)
                while upstream.requests[0].left_at is None:
                    await asyncio.sleep(0.01)

    with routing(server, hang(*begun_with)) as upstream, on_a_socket(server) as url:
        server.run(leave(url(), upstream))

    assert core.running == {}
    assert core.said[0].said == 3


def test_client_that_leaves_ends_the_ensembles_other_choices_too(server: Server) -> None:
    letters = "abcdefghij" * 90
    torn = [Said(letter, 0.9 if number == 2 else 0.1) for number, letter in enumerate(letters)]
    core = server.engine.play(torn, [Said(letter) for letter in letters])
    body: Any = {"model": NAME, "messages": HELLO, "stream": True, "max_tokens": len(letters), "n": 2}
    body["uncertainty"] = {"policy": {"action": "route", **STRICT}}

    async def leave(url: str) -> None:
        async with (
            httpx2.AsyncClient() as client,
            client.stream("POST", f"{url}/v1/chat/completions", json=body, timeout=20) as response,
        ):
            async for line in response.aiter_lines():
                if '"index":1' in line and '"content":"j"' in line:
                    break
        async with asyncio.timeout(20):
            while core.running:
                await asyncio.sleep(0.01)

    with routing(server, hang()) as upstream, on_a_socket(server) as url:
        server.run(leave(url()))
        assert upstream.until(lambda: upstream.requests[0].left_at is not None, 5)

    assert core.said[1].said < len(letters)


def chat_chunk_of(text: str) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}]}


def test_synchronous_client_reads_a_routed_stream(server: Server) -> None:
    def ask(url: str) -> list[str | None]:
        with openai.OpenAI(base_url=f"{url}/v1", api_key="-", max_retries=0) as client:
            create: Any = client.chat.completions.create
            stream = create(model=NAME, messages=HELLO, stream=True, **routed())
            return [chunk.choices[0].delta.content for chunk in stream]

    server.engine.play(HUMP)
    with routing(server, chat_stream("No", ".")), on_a_socket(server) as url:
        found = server.run(asyncio.to_thread(ask, url()))

    assert found == ["No", ".", None]
