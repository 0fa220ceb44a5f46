"""Our routes around vLLM's real handlers and output processor: texts, bytes, stops, samples, ends and mistakes."""

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai.types.responses import ResponseErrorEvent
from prometheus_client import REGISTRY

from softspec.engine.wire import KEY, LOCKSTEP_FAILED, MIXING_FAILED, NO_TOKEN_LEFT
from softspec.errors import ConfigError
from tests.support.tiny import random_adapters, tiny_llama, tiny_tokenizer

pytestmark = pytest.mark.vllm

NAME, BASE = "tiny-ensemble", "tiny-base"
TORN = "😀é漢 a"
"""Eleven tokens, one for every byte."""
LARGEST = 2**63 - 1
TOKENS = {"detail": "tokens"}
ROUTES: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": ("/v1/chat/completions", {"messages": [{"role": "user", "content": "hello"}]}),
    "text": ("/v1/completions", {"prompt": "hello"}),
    "responses": ("/v1/responses", {"input": "hello"}),
    "messages": ("/v1/messages", {"max_tokens": 64, "messages": [{"role": "user", "content": "hello"}]}),
}


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A server with tools and reasoning, whose tokenizer has the marks of thinking."""
    from tests.support.scripted_vllm import serving
    from tests.support.spoken_vllm import SpokenAsyncLLM

    folder = tmp_path_factory.mktemp("models")
    base = tiny_llama(folder / BASE)
    tokenizer = tiny_tokenizer(vocab_size=318)
    tokenizer.add_tokens(["<think>", "</think>"])
    tokenizer.save_pretrained(base)
    ensemble = random_adapters(base, folder / "ensemble", num_members=2)
    flags = ("--enable-auto-tool-choice", "--tool-call-parser", "hermes", "--reasoning-parser", "deepseek_r1")
    with serving(ensemble, *flags, engine_of=SpokenAsyncLLM, SOFTSPEC_ALLOW_UNTESTED="1") as server:
        yield server


@pytest.fixture
def server(running: Any) -> Any:
    running.engine.text, running.engine.broken = f"<think>hm</think>{TORN}", None
    running.engine.asked.clear()
    return running


def counted(name: str, model: str = NAME) -> float:
    return REGISTRY.get_sample_value(f"softspec_{name}_errors_total", {"model": model}) or 0.0


@pytest.mark.parametrize("top", [None, 0, 2])
def test_log_probabilities_have_the_text_that_a_single_model_gives_them(server: Any, top: int | None) -> None:
    """`logprobs` without a number of alternatives still asks for the drawn token's text."""
    asked = {"logprobs": True, **({} if top is None else {"top_logprobs": top})}

    found = server.chat(**asked).choices[0].logprobs.content
    expected = server.chat(model=BASE, **asked).choices[0].logprobs.content

    assert [entry.model_dump() for entry in found] == [entry.model_dump() for entry in expected]
    assert "".join(entry.token for entry in found).startswith("<think>hm</think>😀é漢 a")


def test_completions_say_where_the_text_of_each_token_begins(server: Any) -> None:
    server.engine.text = TORN

    found = server.complete(logprobs=0).choices[0].logprobs
    expected = server.complete(model=BASE, logprobs=0).choices[0].logprobs

    assert found.model_dump() == expected.model_dump()
    assert found.text_offset == [0, 0, 0, 0, 1, 1, 2, 2, 2, 3, 4, 5]


def test_echo_without_an_answer_still_judges_the_token_that_vllm_draws_and_hides(server: Any) -> None:
    answer = server.complete(echo=True, max_tokens=0)

    assert answer.choices[0].text == "hello"
    assert answer.choices[0].uncertainty["num_tokens"] == answer.usage.completion_tokens == 1


@pytest.mark.parametrize("stream", [False, True])
def test_bytes_of_the_tokens_are_the_text(server: Any, stream: bool) -> None:
    server.engine.text = TORN
    body = {"extra_body": {"uncertainty": TOKENS}}

    if stream:
        tokens = [
            token
            for chunk in server.stream(**body)
            for choice in chunk.choices
            for token in getattr(choice, "uncertainty", {}).get("tokens", [])
        ]
    else:
        tokens = server.chat(**body).choices[0].uncertainty["tokens"]

    *spoken, end = tokens
    assert bytes(byte for token in spoken for byte in token["bytes"]).decode() == TORN
    assert [token["token_id"] for token in spoken] == server.engine.renderer.tokenizer.encode(TORN)
    assert bytes(end["bytes"]).decode() == end["token"] == "<|im_end|>"


@pytest.mark.parametrize("detail", ["tokens", "summary"])
@pytest.mark.parametrize("stop", ["漢", "é漢", " a", "😀"])
def test_stream_with_a_stop_string_tells_what_the_whole_answer_tells(
    server: Any, stop: str, detail: str
) -> None:
    """The tokens of the stop string were drawn and judged, though their text is not sent."""
    server.engine.text = TORN
    body = {"stop": stop, "extra_body": {"uncertainty": {"detail": detail}}, "seed": 5}

    async def stream() -> list[Any]:
        chunks = await server.client.completions.create(model=NAME, prompt="hi", stream=True, **body)
        return [choice async for chunk in chunks for choice in chunk.choices]

    whole, pieces = server.complete(**body).choices[0], server.run(stream())

    reports = [getattr(piece, "uncertainty", {}) for piece in pieces]
    streamed = [token for report in reports for token in report.get("tokens", [])]
    assert streamed == whole.uncertainty.pop("tokens", [])
    assert {key: value for key, value in reports[-1].items() if key != "tokens"} == whole.uncertainty
    assert "".join(piece.text for piece in pieces) == whole.text == TORN[: TORN.index(stop)]
    drawn = TORN[: TORN.index(stop) + len(stop)].encode()
    assert whole.uncertainty["num_tokens"] == len(drawn)


@pytest.mark.parametrize("seed", [0, -7, LARGEST - 1, LARGEST])
@pytest.mark.parametrize("n", [1, 2, 3])
def test_every_choice_reports_the_seed_that_its_rows_had(server: Any, n: int, seed: int) -> None:
    choices = server.chat(n=n, seed=seed, temperature=1).choices

    reported = [choice.uncertainty["seed"] for choice in choices]
    assert reported == [params.seed for params in server.engine.asked]
    assert len(set(reported)) == n
    assert all(-(2**63) <= each <= LARGEST for each in reported)


def test_top_k_of_any_size_reaches_the_engine_as_the_vocabulary(server: Any) -> None:
    server.chat(extra_body={"top_k": 2**63})

    assert server.engine.asked[-1].top_k == 320


def test_two_streams_at_once_keep_their_numbers_apart(server: Any) -> None:
    server.engine.text = TORN

    async def collect(**body: Any) -> list[Any]:
        chunks = await server.client.chat.completions.create(
            model=NAME, messages=[{"role": "user", "content": "hi"}], stream=True, **body
        )
        return [choice async for chunk in chunks for choice in chunk.choices]

    async def both() -> tuple[list[Any], list[Any], list[Any]]:
        tokens = {"extra_body": {"uncertainty": TOKENS}}
        return await asyncio.gather(
            collect(seed=1, **tokens), collect(seed=2, max_tokens=3, **tokens), collect(seed=3, n=2, **tokens)
        )

    first, short, double = server.run(both())

    def counts(choices: list[Any], index: int = 0) -> tuple[int, int]:
        mine = [choice for choice in choices if choice.index == index]
        tokens = [each for choice in mine for each in getattr(choice, "uncertainty", {}).get("tokens", [])]
        return mine[-1].uncertainty["seed"], len(tokens)

    assert counts(first) == (1, 12)
    assert counts(short) == (2, 3)
    assert (counts(double, 0), counts(double, 1)) == ((3, 12), (4, 12))


def test_reasoning_is_split_off_and_judged(server: Any) -> None:
    choice = server.chat().choices[0]

    assert (choice.message.reasoning, choice.message.content) == ("hm", TORN)
    assert choice.uncertainty["num_tokens"] == 16


def test_tool_calls_are_parsed_and_judged(server: Any) -> None:
    call = json.dumps({"name": "look", "arguments": {"at": "é"}}, ensure_ascii=False)
    server.engine.text = f"</think><tool_call>{call}</tool_call>"
    tool = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
    body = {"tools": [tool], "tool_choice": "auto", "seed": 3}

    whole = server.chat(**body).choices[0]
    chunks = [choice for chunk in server.stream(**body) for choice in chunk.choices]

    assert whole.finish_reason == "tool_calls"
    assert whole.message.tool_calls[0].function.name == "look"
    deltas = [call for choice in chunks for call in choice.delta.tool_calls or []]
    assert json.loads("".join(d.function.arguments or "" for d in deltas if d.function)) == {"at": "é"}
    assert chunks[-1].uncertainty == whole.uncertainty


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("stream", [False, True])
def test_every_route_answers_from_the_mixture(server: Any, route: str, stream: bool) -> None:
    path, body = ROUTES[route]

    answer = server.post(path, {"model": NAME, **body, "stream": stream})

    assert answer.status_code == 200
    assert "漢" in answer.text or "\\u6f22" in answer.text
    assert KEY in server.engine.asked[-1].extra_args


MISTAKES: dict[str, dict[str, Any]] = {
    "reserved key": {"vllm_xargs": {KEY: "x"}},
    "no object": {"vllm_xargs": {"kv_transfer_params": "x"}},
    "out of vocabulary": {"logit_bias": {"4294967296": 1}},
}


@pytest.mark.parametrize("model", [NAME, f"{NAME}/member-0", BASE])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("mistake", MISTAKES)
@pytest.mark.parametrize("route", ["chat", "text", "responses"])
def test_mistakes_are_a_400_on_every_route_streamed_too(
    server: Any, route: str, mistake: str, stream: bool, model: str
) -> None:
    path, body = ROUTES[route]

    answer = server.post(path, {"model": model, **body, **MISTAKES[mistake], "stream": stream})

    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["message"]
    assert not server.engine.asked


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("route", [*ROUTES, "scoring"])
def test_what_the_server_may_not_answer_is_a_400_on_every_route(
    server: Any, route: str, stream: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(ensemble: str) -> None:
        raise ConfigError(f"'{ensemble}' may not be asked here")

    scoring = ("/generative_scoring", {"query": "a", "items": ["b"], "label_token_ids": [7]})
    monkeypatch.setattr(server.app.state.openai_serving_chat.engine_client, "_may_run", refuse)
    path, body = scoring if route == "scoring" else ROUTES[route]

    answer = server.post(path, {"model": NAME, **body, **({"stream": True} if stream else {})})

    assert (answer.status_code, "may not be asked here" in answer.text) == (400, True)


@pytest.mark.parametrize("model", [NAME, BASE])
def test_more_than_twenty_log_probabilities_are_refused_for_every_model(server: Any, model: str) -> None:
    server.chat(model=model, logprobs=True, top_logprobs=20)
    with pytest.raises(openai.BadRequestError, match="21"):
        server.chat(model=model, logprobs=True, top_logprobs=21)


@pytest.mark.parametrize(
    ("reason", "message", "metric"),
    [
        (LOCKSTEP_FAILED, "members came apart", "lockstep"),
        (MIXING_FAILED, "could not be mixed", "mixing"),
    ],
)
@pytest.mark.parametrize("model", [NAME, f"{NAME}/member-1"])
def test_our_own_failures_are_named_and_counted(
    server: Any, model: str, reason: str, message: str, metric: str
) -> None:
    before = counted(metric, model)
    server.engine.broken = reason

    with pytest.raises(openai.InternalServerError, match=message):
        server.chat(model=model)
    with pytest.raises(openai.APIError, match=message):
        server.stream(model=model)

    assert counted(metric, model) == before + 2


def test_constraints_that_leave_no_token_are_the_callers_mistake(server: Any) -> None:
    before = counted("lockstep"), counted("mixing")
    server.engine.broken = NO_TOKEN_LEFT

    with pytest.raises(openai.BadRequestError, match="leave no token"):
        server.chat()
    with pytest.raises(openai.APIError, match="leave no token"):
        server.stream()

    assert (counted("lockstep"), counted("mixing")) == before


def test_errors_of_vllm_are_its_own(server: Any) -> None:
    """A grammar that does not compile, or that rejects a token, ends a request with an error and no reason."""
    before = counted("lockstep"), counted("mixing")
    server.engine.broken = ""

    with pytest.raises(openai.InternalServerError, match="Internal server error"):
        server.chat()
    with pytest.raises(openai.APIError, match="Internal server error"):
        server.stream()

    assert (counted("lockstep"), counted("mixing")) == before


def schema(**of_m: Any) -> dict[str, Any]:
    return {"type": "object", "properties": {"m": of_m}, "required": ["m"]}


def formatted(schema: dict[str, Any]) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "c", "schema": schema}}}


UNCOMPILED = {
    "unknown to xgrammar": schema(type="array", items=[{"type": "string"}]),
    "no automaton": schema(type="string", pattern="^[^\\n\\r]{1,129}$"),
}


@pytest.mark.parametrize("model", [NAME, f"{NAME}/member-0", BASE])
@pytest.mark.parametrize("case", UNCOMPILED)
def test_schema_that_does_not_compile_is_a_mistake_of_the_caller(server: Any, case: str, model: str) -> None:
    """vLLM lets both pass and ends the request in the engine with a 500."""
    with pytest.raises(openai.BadRequestError, match="structured_outputs"):
        server.chat(model=model, **formatted(UNCOMPILED[case]))
    with pytest.raises(openai.APIError, match="structured_outputs"):
        server.stream(model=model, **formatted(UNCOMPILED[case]))

    assert not server.engine.asked


def last_event(server: Any, **fields: Any) -> dict[str, Any]:
    path, body = ROUTES["responses"]
    events = server.post(path, {"model": NAME, **body, **fields, "stream": True}).text
    last = events.split("data: ")[-1]
    ResponseErrorEvent.model_validate_json(last, strict=True)
    return dict(json.loads(last))


def test_stream_of_responses_ends_in_an_event_when_its_schema_does_not_compile(server: Any) -> None:
    """It has begun by then; vLLM's own would break the connection."""
    text = {"format": {"type": "json_schema", "name": "c", "schema": UNCOMPILED["no automaton"]}}

    event = last_event(server, text=text)

    assert (event["type"], event["code"]) == ("error", "invalid_request_error")
    assert "structured_outputs" in event["message"]


@pytest.mark.parametrize(("reason", "message"), [(LOCKSTEP_FAILED, "came apart"), ("", "Internal server")])
def test_stream_of_responses_ends_in_an_event_when_the_engine_ends_it(
    server: Any, reason: str, message: str
) -> None:
    server.engine.broken = reason

    event = last_event(server)

    assert (event["type"], event["code"], message in event["message"]) == ("error", "server_error", True)


def test_schema_that_compiles_reaches_the_engine(server: Any) -> None:
    server.chat(**formatted(schema(type="string", maxLength=9)))
    server.chat(extra_body={"structured_outputs": {"choice": ["red", "blue"]}})
    server.chat(model=BASE, response_format={"type": "json_object"})

    assert len(server.engine.asked) == 3


def test_schema_that_takes_long_to_read_keeps_nobody_waiting(
    server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("softspec.engine.front.grammar.CHECK_LIMIT_S", 0.3)
    slow = formatted(schema(type="string", pattern="^(a|b){1,2000}$"))

    async def ask_meanwhile() -> tuple[Any, int]:
        asked = asyncio.create_task(
            server.http.post(ROUTES["chat"][0], json={"model": NAME, **ROUTES["chat"][1], **slow})
        )
        answered = 0
        while not asked.done():
            await asyncio.sleep(0.02)
            answered += (await server.http.get("/health")).status_code == 200
        return await asked, answered

    answer, answered = server.run(ask_meanwhile())

    assert (answer.status_code, "not read within 0.3 s" in answer.text) == (400, True)
    assert answered > 3
