"""What the official client makes of OpenAI's Responses from an ensemble: refusals, tools, structure, streams."""

import json
from typing import Any

import openai
import pytest
from openai.types.responses import (
    ResponseContentPartAddedEvent,
    ResponseContentPartDoneEvent,
    ResponseOutputItemAddedEvent,
    ResponseOutputItemDoneEvent,
    ResponseRefusalDeltaEvent,
    ResponseRefusalDoneEvent,
)
from pydantic import BaseModel

from tests.support.scripted_vllm import NAME, Server
from tests.support.spelled import fail_in_the_middle, says

pytestmark = pytest.mark.vllm

LIMIT = {"uncertainty": {"policy": {"action": "abstain", "metric": "max_epistemic", "threshold": 0.5}}}
CALL = '{"name": "paint", "arguments": {"c": "red"}}'
TOOL: Any = {"type": "function", "name": "paint", "parameters": {"type": "object"}, "strict": True}
CUSTOM: Any = {"type": "custom", "name": "paint"}
REFUSED = [
    "response.output_item.added",
    "response.content_part.added",
    "response.refusal.delta",
    "response.refusal.done",
    "response.content_part.done",
    "response.output_item.done",
    "response.completed",
]
OF_REFUSALS: dict[str, type[BaseModel]] = {
    "response.output_item.added": ResponseOutputItemAddedEvent,
    "response.content_part.added": ResponseContentPartAddedEvent,
    "response.refusal.delta": ResponseRefusalDeltaEvent,
    "response.refusal.done": ResponseRefusalDoneEvent,
    "response.content_part.done": ResponseContentPartDoneEvent,
    "response.output_item.done": ResponseOutputItemDoneEvent,
}


class Colour(BaseModel):
    name: str


def create(server: Server, **fields: Any) -> Any:
    asked = {"model": NAME, "input": "hello", "extra_body": LIMIT, **fields}
    return server.run(server.client.responses.create(**asked))


def raw_events(server: Server, **fields: Any) -> list[dict[str, Any]]:
    answer = server.post(
        "/v1/responses", {"model": NAME, "input": "hello", "stream": True, **LIMIT, **fields}
    )
    assert answer.status_code == 200, answer.text
    return [json.loads(block.split("data: ")[1]) for block in answer.text.split("\n\n")[:-1]]


def test_answer_has_its_numbers_at_the_response_and_at_its_items(server: Server) -> None:
    says(server, "<think>hm</think>red")

    answer = create(server)

    reasoning, message = answer.output
    assert (answer.status, answer.output_text) == ("incomplete", "red")
    assert answer.uncertainty["num_tokens"] == answer.usage.output_tokens == 7
    assert message.uncertainty == answer.uncertainty
    assert "uncertainty" not in reasoning.model_extra


def test_refusal_is_read_as_openais_own(server: Server) -> None:
    says(server, "<think>hm</think>red", unsure_at=-1)

    answer = create(server)

    [message] = answer.output
    [part] = message.content
    assert (answer.status, answer.output_text, message.status) == ("completed", "", "completed")
    assert (part.type, "at token 7" in part.refusal) == ("refusal", True)
    assert answer.uncertainty["decided_at"] == 7


@pytest.mark.parametrize("is_unsure", [False, True])
def test_parse_gives_the_object_or_none(server: Server, is_unsure: bool) -> None:
    says(server, '</think>{"name": "red"}', unsure_at=9 if is_unsure else None)

    answer: Any = server.run(
        server.client.responses.parse(model=NAME, input="hello", text_format=Colour, extra_body=LIMIT)
    )

    assert answer.output_parsed == (None if is_unsure else Colour(name="red"))
    assert answer.uncertainty["decision"] == ("abstain" if is_unsure else "answer")


@pytest.mark.parametrize("is_unsure", [False, True])
@pytest.mark.parametrize("text_format", [{}, {"text_format": Colour}], ids=["text", "schema"])
def test_stream_helper_ends_with_the_whole_response(
    server: Server, text_format: dict[str, Any], is_unsure: bool
) -> None:
    says(server, '<think>hm</think>{"name": "red"}', unsure_at=12 if is_unsure else None)

    async def collect() -> tuple[list[Any], Any]:
        ask = server.client.responses.stream
        async with ask(model=NAME, input="hello", extra_body=LIMIT, **text_format) as stream:
            return [event async for event in stream], await stream.get_final_response()

    events, final = server.run(collect())

    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert final.uncertainty["decided_at"] == (13 if is_unsure else None)
    assert ("response.refusal.done" in {event.type for event in events}) == is_unsure
    assert final.output_text == ("" if is_unsure else '{"name": "red"}')
    parsed = Colour(name="red") if text_format and not is_unsure else None
    assert final.output_parsed == parsed


def test_blocking_client_gets_the_same(server: Server) -> None:
    says(server, "</think>red", unsure_at=2)

    def ask(http: Any) -> tuple[Any, Any]:
        client = openai.OpenAI(base_url="http://server/v1", api_key="-", http_client=http, max_retries=0)
        whole = client.responses.create(model=NAME, input="hello", extra_body=LIMIT)
        with client.responses.stream(model=NAME, input="hello", extra_body=LIMIT) as stream:
            return whole, stream.get_final_response()

    whole, streamed = server.blocking(ask)

    assert whole.output[0].content[0].refusal == streamed.output[0].content[0].refusal
    assert whole.uncertainty["decided_at"] == streamed.uncertainty["decided_at"] == 3


OPENED = {
    "nothing": ("</think>red", 0, [], []),
    "reasoning": ("<think>hm</think>red", 2, ["reasoning"], []),
    "text": ("</think>red", 3, ["message"], []),
    "text after reasoning": ("<think>hm</think>red", 5, ["message"], ["reasoning"]),
    "call": (f"</think><tool_call>{CALL}</tool_call>", 45, ["function_call"], []),
    "call after text": (f"</think>ok<tool_call>{CALL}</tool_call>", 47, ["function_call"], ["message"]),
}


@pytest.mark.parametrize("case", OPENED)
def test_what_was_open_is_closed_as_incomplete_and_empty(server: Server, case: str) -> None:
    text, at, opened, closed = OPENED[case]
    says(server, text, unsure_at=at)

    events = raw_events(server, tools=[TOOL])

    kinds = [event["type"] for event in events]
    done = [event["item"] for event in events if event["type"] == "response.output_item.done"]
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert kinds[:2] == ["response.created", "response.in_progress"]
    assert kinds[-len(REFUSED) :] == REFUSED
    assert kinds.count("response.content_part.added") == kinds.count("response.content_part.done")
    assert [item["type"] for item in done] == [*closed, *opened, "message"]
    assert [item["status"] for item in done[len(closed) : -1]] == ["incomplete"] * len(opened)
    assert not any(item.get("content") or item.get("arguments") for item in done[len(closed) : -1])
    indices = [event["output_index"] for event in events if event["type"] == "response.output_item.done"]
    assert indices == list(range(len(done)))
    final = events[-1]["response"]
    assert [item["id"] for item in final["output"]] == [done[-1]["id"]]
    assert final["uncertainty"]["decided_at"] == at + 1


@pytest.mark.parametrize("case", OPENED)
def test_events_of_a_refusal_have_the_shape_of_openais(server: Server, case: str) -> None:
    text, at, *_ = OPENED[case]
    says(server, text, unsure_at=at)

    events = raw_events(server, tools=[TOOL])

    for event in events[-len(REFUSED) : -1]:
        OF_REFUSALS[event["type"]].model_validate(event, strict=True)


@pytest.mark.parametrize("case", OPENED)
def test_stream_helper_accepts_every_end(server: Server, case: str) -> None:
    text, at, *_ = OPENED[case]
    says(server, text, unsure_at=at)

    async def final() -> Any:
        async with server.client.responses.stream(
            model=NAME, input="hello", tools=[TOOL], extra_body=LIMIT
        ) as stream:
            return await stream.get_final_response()

    assert server.run(final()).output[0].content[0].type == "refusal"


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("tool_choice", ["auto", "required", {"type": "function", "name": "paint"}], ids=str)
@pytest.mark.parametrize("is_unsure", [False, True])
def test_tool_call_is_called_or_refused(
    server: Server, tool_choice: Any, stream: bool, is_unsure: bool
) -> None:
    says(server, f"</think><tool_call>{CALL}</tool_call>", unsure_at=-15 if is_unsure else None)
    fields: dict[str, Any] = {"tools": [TOOL], "tool_choice": tool_choice}

    if stream:
        output = raw_events(server, **fields)[-1]["response"]["output"]
    else:
        output = [item.model_dump() for item in create(server, **fields).output]

    [item] = output
    if is_unsure:
        assert item["content"][0]["type"] == "refusal"
    else:
        assert (item["type"], json.loads(item["arguments"])) == ("function_call", {"c": "red"})
        assert item["uncertainty"]["decision"] == "answer"


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_log_probabilities_are_the_mixtures(server: Server, stream: bool) -> None:
    says(server, "</think>red")
    fields = {"include": ["message.output_text.logprobs"], "top_logprobs": 2, "instructions": "Be brief."}

    if stream:
        deltas = [each for each in raw_events(server, **fields) if each["type"].endswith("text.delta")]
        found = [each for delta in deltas for each in delta["logprobs"]]
    else:
        answer = create(server, **fields, extra_body={"uncertainty": {"detail": "tokens"}})
        found = [each.model_dump() for each in answer.output[0].content[0].logprobs][-3:]
        assert [each["log_prob"] for each in answer.uncertainty["tokens"]][-3:] == [
            each["logprob"] for each in found
        ]

    assert [each["token"] for each in found] == ["r", "e", "d"]
    assert {round(each["logprob"], 6) for each in found} == {-1.0}


def test_nothing_is_stored_that_was_not_judged(server: Server) -> None:
    """The server keeps responses of single models, by vLLM's own switch."""
    says(server, "</think>red", unsure_at=2)

    kept = [create(server, store=True).id, create(server, store=True, model="tiny-base", extra_body={}).id]
    found = [server.get(f"/v1/responses/{each}").status_code for each in kept]

    assert found == [404, 200]


def test_conversation_with_a_refusal_in_it_goes_on(server: Server) -> None:
    """vLLM fails on one, which no model of its own has written."""
    says(server, "</think>red", unsure_at=2)
    refused = create(server)
    items = [{"role": "user", "content": "hello"}, *refused.output, {"role": "user", "content": "sure?"}]
    says(server, "</think>red")

    answer = create(server, input=items)

    assert answer.output_text == "red"
    prompt = server.engine.engine_core.said[-1].request.prompt_token_ids
    assert "too uncertain" in server.engine.renderer.tokenizer.decode(prompt)


def test_items_of_an_answer_can_be_sent_back(server: Server) -> None:
    says(server, f"<think>hm</think>ok<tool_call>{CALL}</tool_call>")
    called = create(server, tools=[TOOL])
    result = {"type": "function_call_output", "call_id": called.output[-1].call_id, "output": "done"}
    says(server, "</think>red")

    answer = create(server, tools=[TOOL], input=[{"role": "user", "content": "x"}, *called.output, result])

    assert answer.output_text == "red"


REFUSALS: dict[str, tuple[dict[str, Any], str]] = {
    "background": ({"background": True}, "background"),
    "previous response": ({"previous_response_id": "resp_1"}, "previous_response_id"),
    "tool of the server": ({"tools": [{"type": "web_search"}]}, "tools.0.type"),
    "tool of another server": (
        {"tools": [TOOL, {"type": "mcp", "server_label": "a", "server_url": "http://a"}]},
        "tools.1.type",
    ),
    "choice among tools": (
        {"tools": [TOOL], "tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": []}},
        "tool_choice",
    ),
    "alternatives of nothing": ({"top_logprobs": 2}, "top_logprobs"),
    "conversation": ({"conversation": "conv_1"}, "conversation"),
    "samples": ({"n": 2}, "n"),
    "slip": ({"temprature": 0}, "temprature"),
    "chat's limit": ({"max_tokens": 3}, "max_tokens"),
    "watermark": ({"watermarking": True}, "watermarking"),
    "reserved": ({"vllm_xargs": {"softspec": "x"}}, "vllm_xargs.softspec"),
    "field of the policy": ({"uncertainty": {"policy": {"treshold": 1}}}, "uncertainty.policy.treshold"),
    "detail": ({"uncertainty": {"detail": "all"}}, "uncertainty.detail"),
    "fields": ({"uncertainty": {"detail": "fields"}}, "uncertainty.detail"),
    "uncertainty of one model": ({"model": "tiny-base", "uncertainty": {}}, "uncertainty"),
}


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("case", REFUSALS)
def test_what_cannot_be_right_is_refused_by_name(server: Server, case: str, stream: bool) -> None:
    fields, param = REFUSALS[case]
    says(server, "</think>red")

    answer = server.post("/v1/responses", {"model": NAME, "input": "hello", "stream": stream, **fields})

    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param), answer.text
    assert not server.engine.engine_core.said


PASSES: dict[str, object] = {
    "store": True,
    "metadata": {"team": "law"},
    "include": ["reasoning.encrypted_content"],
    "prompt_cache_key": "k",
    "prompt_cache_retention": "24h",
    "safety_identifier": "u",
    "service_tier": "flex",
    "stream_options": {"include_obfuscation": False},
    "text": {"format": {"type": "text"}, "verbosity": "low"},
    "truncation": "disabled",
    "parallel_tool_calls": False,
    "max_tool_calls": 3,
    "reasoning": {"effort": "low", "summary": "auto"},
    "user": "u",
    "background": False,
    "previous_response_id": None,
}


@pytest.mark.parametrize("field", PASSES)
def test_what_changes_nothing_passes(server: Server, field: str) -> None:
    says(server, "</think>red")

    answer = server.post("/v1/responses", {"model": NAME, "input": "hello", field: PASSES[field]})

    assert answer.status_code == 200, answer.text


def test_error_of_the_engine_ends_a_stream_in_an_event(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    says(server, "</think>red")
    fail_in_the_middle(server, monkeypatch)

    events = raw_events(server)

    assert (events[-1]["type"], "came apart" in events[-1]["message"]) == ("error", True)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
