"""What the official client makes of Anthropic's Messages from an ensemble: refusals, tools, streams, errors."""

import json
from typing import Any

import anthropic
import pytest
from anthropic.types import Message, RawMessageStreamEvent
from pydantic import BaseModel, TypeAdapter

from tests.support.other_routes import HELLO
from tests.support.scripted_vllm import NAME, Server
from tests.support.spelled import fail_in_the_middle, says

pytestmark = pytest.mark.vllm

LIMIT = {"uncertainty": {"policy": {"action": "abstain", "metric": "max_epistemic", "threshold": 0.5}}}
ASKED: dict[str, Any] = {"model": NAME, "messages": HELLO, "max_tokens": 99}
CALL = '{"name": "paint", "arguments": {"c": "red"}}'
TOOL: Any = {"name": "paint", "input_schema": {"type": "object"}}


class Colour(BaseModel):
    name: str


def client_of(server: Server) -> anthropic.AsyncAnthropic:
    return anthropic.AsyncAnthropic(
        base_url="http://server", api_key="-", http_client=server.http, max_retries=0
    )


def create(server: Server, **fields: Any) -> Any:
    return server.run(client_of(server).messages.create(**{**ASKED, "extra_body": LIMIT, **fields}))


def stream(server: Server, **fields: Any) -> tuple[list[Any], Any]:
    """The events of the stream helper, and its final message."""

    async def collect() -> tuple[list[Any], Any]:
        async with client_of(server).messages.stream(**{**ASKED, "extra_body": LIMIT, **fields}) as events:
            return [event async for event in events], await events.get_final_message()

    return server.run(collect())


def raw_events(server: Server, **fields: Any) -> list[dict[str, Any]]:
    answer = server.post("/v1/messages", {**ASKED, **LIMIT, **fields, "stream": True})
    assert answer.status_code == 200, answer.text
    return [json.loads(block.split("data: ")[1]) for block in answer.text.split("\n\n")[:-1]]


def test_message_has_its_numbers(server: Server) -> None:
    says(server, "<think>hm</think>red")

    message = create(server)

    assert [block.type for block in message.content] == ["thinking", "text"]
    assert message.content[1].text == "red"
    assert message.uncertainty["num_tokens"] == message.usage.output_tokens == 7
    assert message.uncertainty["decision"] == "answer"


def test_refusal_is_anthropics_own(server: Server) -> None:
    says(server, "<think>hm</think>red", unsure_at=-1)

    message = create(server)

    assert (message.content, message.stop_reason, message.stop_sequence) == ([], "refusal", None)
    assert "at token 7" in message.stop_details.explanation
    assert message.uncertainty["decided_at"] == 7
    Message.model_validate(message.model_dump(), strict=True)


@pytest.mark.parametrize("is_unsure", [False, True])
def test_parse_gives_the_object_or_none(server: Server, is_unsure: bool) -> None:
    says(server, '</think>{"name": "red"}', unsure_at=9 if is_unsure else None)

    message = server.run(client_of(server).messages.parse(**ASKED, output_format=Colour, extra_body=LIMIT))

    assert message.parsed_output == (None if is_unsure else Colour(name="red"))
    assert message.stop_reason == ("refusal" if is_unsure else "max_tokens")


@pytest.mark.parametrize("is_unsure", [False, True])
@pytest.mark.parametrize("output_format", [{}, {"output_format": Colour}], ids=["text", "schema"])
def test_stream_helper_reaches_the_end(
    server: Server, output_format: dict[str, Any], is_unsure: bool
) -> None:
    says(server, '<think>hm</think>{"name": "red"}', unsure_at=12 if is_unsure else None)

    events, message = stream(server, **output_format)

    [verdict] = [event.uncertainty for event in events if event.type == "message_delta"]
    text = "".join(event.text for event in events if event.type == "text")
    assert verdict["decided_at"] == (13 if is_unsure else None)
    assert message.stop_reason == ("refusal" if is_unsure else "max_tokens")
    assert (message.stop_details is not None) == is_unsure
    assert text == ('{"name": ' if is_unsure else '{"name": "red"}')[: len(text)]
    assert message.usage.output_tokens == verdict["num_tokens"]
    assert message.parsed_output == (Colour(name="red") if output_format and not is_unsure else None)


def test_text_stream_ends_where_the_answer_is_withheld(server: Server) -> None:
    says(server, "</think>red", unsure_at=3)

    async def collect() -> list[str]:
        async with client_of(server).messages.stream(**ASKED, extra_body=LIMIT) as events:
            return [text async for text in events.text_stream]

    assert server.run(collect()) == ["r", "e"]


def test_blocking_client_gets_the_same(server: Server) -> None:
    says(server, "</think>red", unsure_at=2)

    def ask(http: Any) -> tuple[Any, Any]:
        client = anthropic.Anthropic(base_url="http://server", api_key="-", http_client=http, max_retries=0)
        whole = client.messages.create(**ASKED, extra_body=LIMIT)
        with client.messages.stream(**ASKED, extra_body=LIMIT) as events:
            return whole, events.get_final_message()

    whole, streamed = server.blocking(ask)

    assert whole.stop_details.explanation == streamed.stop_details.explanation
    assert (whole.stop_reason, whole.uncertainty["decided_at"]) == (streamed.stop_reason, 3)


OPENED = {
    "nothing": ("</think>red", 0, []),
    "thinking": ("<think>hm</think>red", 2, ["thinking"]),
    "text": ("</think>red", 3, ["text"]),
    "text after thinking": ("<think>hm</think>red", 5, ["thinking", "text"]),
    "call": (f"</think><tool_call>{CALL}</tool_call>", 45, ["tool_use"]),
    "call after text": (f"</think>ok<tool_call>{CALL}</tool_call>", 47, ["text", "tool_use"]),
}


@pytest.mark.parametrize("case", OPENED)
def test_blocks_that_were_opened_are_closed(server: Server, case: str) -> None:
    text, at, opened = OPENED[case]
    says(server, text, unsure_at=at)

    events = raw_events(server, tools=[TOOL])

    kinds = [event["type"] for event in events]
    started = [event["content_block"] for event in events if event["type"] == "content_block_start"]
    stopped = [event["index"] for event in events if event["type"] == "content_block_stop"]
    assert [block["type"] for block in started] == opened
    assert stopped == list(range(len(opened)))
    assert (kinds[0], kinds[-2:]) == ("message_start", ["message_delta", "message_stop"])
    assert events[-2]["delta"]["stop_reason"] == "refusal"
    assert events[-2]["uncertainty"]["decided_at"] == events[-2]["usage"]["output_tokens"] == at + 1
    for event in events[-3:]:  # ours; vLLM's own lack fields that Anthropic's have
        TypeAdapter[Any](RawMessageStreamEvent).validate_python(event)


def test_block_that_would_be_parsed_stays_open(server: Server) -> None:
    """The client parses it when it hears of its end, and half a JSON is an error."""
    says(server, '</think>{"name": "red"}', unsure_at=5)
    schema = {"type": "json_schema", "schema": Colour.model_json_schema()}

    kinds = [event["type"] for event in raw_events(server, output_config={"format": schema})]

    assert (kinds.count("content_block_start"), kinds.count("content_block_stop")) == (1, 0)


@pytest.mark.parametrize("is_streamed", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("choice", ["auto", "any", "tool"])
@pytest.mark.parametrize("is_unsure", [False, True])
def test_tool_call_is_called_or_refused(
    server: Server, choice: str, is_streamed: bool, is_unsure: bool
) -> None:
    says(server, f"</think><tool_call>{CALL}</tool_call>", unsure_at=-15 if is_unsure else None)
    named = {"name": "paint"} if choice == "tool" else {}
    fields: dict[str, Any] = {"tools": [TOOL], "tool_choice": {"type": choice, **named}}

    message = stream(server, **fields)[1] if is_streamed else create(server, **fields)

    calls = [block.input for block in message.content if block.type == "tool_use"]
    assert (message.stop_reason == "refusal") == is_unsure
    if not is_unsure:
        assert calls == [{"c": "red"}]
    elif not is_streamed:
        assert not message.content


def test_call_whose_arguments_are_cut_off_is_a_refusal_and_no_error(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """vLLM reads the arguments as JSON, whatever became of the call."""
    from vllm.entrypoints.generate.base.protocol import ExtractedToolCallInformation, FunctionCall, ToolCall
    from vllm.tool_parsers.hermes_tool_parser import Hermes2ProToolParser

    def half(*_: Any, **__: Any) -> Any:
        call = ToolCall(function=FunctionCall(name="paint", arguments='{"c": "re'))
        return ExtractedToolCallInformation(tools_called=True, tool_calls=[call], content=None)

    monkeypatch.setattr(Hermes2ProToolParser, "extract_tool_calls", half)
    says(server, f"</think><tool_call>{CALL}</tool_call>", unsure_at=-15)

    assert create(server, tools=[TOOL]).stop_reason == "refusal"


def test_conversation_after_a_refusal_goes_on(server: Server) -> None:
    says(server, "</think>red", unsure_at=2)
    refused = create(server)
    says(server, "</think>red")

    answer = create(server, messages=[*HELLO, refused.to_param(), *HELLO])

    assert answer.content[-1].text == "red"


REFUSALS: dict[str, tuple[dict[str, Any], str]] = {
    "slip": ({"temprature": 0}, "did you mean 'temperature'"),
    "format of the beta": ({"output_format": {"type": "json_schema"}}, "use 'output_config'"),
    "openai's stop": ({"stop": ["x"]}, "use 'stop_sequences'"),
    "container": ({"container": "c"}, "'container'"),
    "servers": ({"mcp_servers": [{"type": "url", "url": "http://a", "name": "a"}]}, "'mcp_servers'"),
    "watermark": ({"watermarking": True}, "'watermarking'"),
    "reserved": ({"vllm_xargs": {"softspec": "x"}}, "vllm_xargs.softspec"),
    "fields": ({"uncertainty": {"detail": "fields"}}, "detail 'fields' is not available at /v1/messages"),
    "field of the policy": ({"uncertainty": {"policy": {"treshold": 1}}}, "treshold"),
    "route without an upstream": ({"uncertainty": {"policy": {"action": "route", "threshold": 1}}}, "route"),
    "uncertainty of one model": ({"model": "tiny-base", "uncertainty": {}}, "'uncertainty'"),
}


@pytest.mark.parametrize("is_streamed", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("case", REFUSALS)
def test_what_cannot_be_right_is_refused_by_name(server: Server, case: str, is_streamed: bool) -> None:
    fields, words = REFUSALS[case]
    says(server, "</think>red")

    answer = server.post("/v1/messages", {**ASKED, "stream": is_streamed, **fields})

    error = answer.json()["error"]
    assert (answer.status_code, answer.json()["type"], error["type"]) == (
        400,
        "error",
        "invalid_request_error",
    )
    assert words in error["message"]
    assert not server.engine.engine_core.said


def test_client_raises_what_it_raises_for_anthropics_errors(server: Server) -> None:
    with pytest.raises(anthropic.BadRequestError, match="did you mean 'temperature'") as refused:
        create(server, extra_body={"temprature": 0})
    with pytest.raises(anthropic.NotFoundError, match="expected one of tiny-ensemble"):
        create(server, model="nobody", extra_body={})

    assert refused.value.type == "invalid_request_error"


PASSES: dict[str, object] = {
    "cache_control": {"type": "ephemeral"},
    "inference_geo": "eu",
    "metadata": {"user_id": "u"},
    "service_tier": "auto",
    "speed": "standard",
    "thinking": {"type": "disabled"},
    "system": [{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}],
    "stop_sequences": ["zz"],
    "mcp_servers": [],
}


@pytest.mark.parametrize("field", PASSES)
def test_what_changes_nothing_passes(server: Server, field: str) -> None:
    says(server, "</think>red")

    answer = server.post("/v1/messages", {**ASKED, field: PASSES[field]})

    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize("is_streamed", [False, True], ids=["whole", "streamed"])
def test_error_of_the_engine_keeps_its_words(
    server: Server, monkeypatch: pytest.MonkeyPatch, is_streamed: bool
) -> None:
    says(server, "</think>red")
    fail_in_the_middle(server, monkeypatch)

    if is_streamed:
        last = raw_events(server)[-1]
        assert (last["type"], last["error"]["type"]) == ("error", "api_error")
        assert "came apart" in last["error"]["message"]
    else:
        with pytest.raises(anthropic.InternalServerError, match="came apart"):
            create(server)


def test_count_of_tokens_is_vllms(server: Server) -> None:
    counted = server.run(client_of(server).messages.count_tokens(model=NAME, messages=HELLO))

    assert counted.input_tokens > 0
