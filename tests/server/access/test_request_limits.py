"""How large one request may be: its fields, and what it would ask of the engine, on every route."""

from collections.abc import Iterator
from typing import Any

import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st

from softspec.engine.asked import Asked
from softspec.errors import FieldError
from softspec.server.access.request_limits import most_tokens, require_small_body
from softspec.server.access.settings import AccessSettings, RequestLimits
from tests.support.fake_engine import AGREED, ENSEMBLE, FakeEngine, client_of, make_app

HELLO: Any = [{"role": "user", "content": "hello"}]


def refusal(limits: RequestLimits, body: bytes) -> FieldError:
    with pytest.raises(FieldError) as error:
        require_small_body(limits, body)
    return error.value


@pytest.mark.parametrize(
    ("limit", "body", "field"),
    [
        ("max_messages: 2", '{"messages": [{}, {}, {}]}', "messages"),
        ("max_messages: 3", '{"messages": [[{}, {}], [{}, {}]]}', "messages"),
        ("max_messages: 2", '{"input": [{}, {}, {}]}', "input"),
        ("max_choices: 2", '{"n": 3}', "n"),
        ("max_choices: 2", '{"n": "3"}', "n"),
        ("max_choices: 2", '{"n": 3.0}', "n"),
        ("max_choices: 2", '{"n": 1, "best_of": 3}', "n"),
        ("max_choices: 2", '{"prompt": ["a", "b", "c"]}', "prompt"),
        ("max_choices: 5", '{"prompt": [[1], [2], [3]], "n": 2}', "n"),
        ("max_choices: 1", '{"messages": [[{}], [{}]]}', "messages"),
        ("max_choices: 1", '{"items": ["a", "b"]}', "items"),
        ("max_answers: 1", '{"answers": ["a", "b"]}', "answers"),
        ("max_options: 5", '{"questions": [{"choices": [1, 2]}, {"levels": [1, 2]}, {}]}', "questions"),
        ("max_output_tokens: 5", '{"max_tokens": 6}', "max_tokens"),
        ("max_output_tokens: 5", '{"max_completion_tokens": 3, "n": 2}', "max_completion_tokens"),
        ("max_output_tokens: 5", '{"max_output_tokens": 6}', "max_output_tokens"),
        ("max_output_tokens: 5", '{"sampling_params": {"max_tokens": "6"}}', "sampling_params.max_tokens"),
        ("max_output_tokens: 5", '{"use_beam_search": true}', "max_tokens"),
    ],
)
def test_field_that_asks_for_too_much_is_named_with_its_limit(limit: str, body: str, field: str) -> None:
    name, value = limit.split(": ")

    error = refusal(RequestLimits.model_validate({name: int(value)}), body.encode())

    assert error.field == field
    assert name in str(error) or "missing" in str(error)


@pytest.mark.parametrize(
    "body",
    [
        '{"messages": [{}], "n": 1, "max_tokens": 5, "prompt": [1, 2, 3]}',
        '{"n": null, "prompt": "a", "max_tokens": null, "answers": null, "questions": null}',
        '{"n": "many", "max_tokens": "NaN", "messages": "x", "questions": [1], "sampling_params": 1}',
        '{"n": [], "max_tokens": Infinity, "input": "a long text"}',
        "[1, 2, 3]",
        "{",
        "",
        "[" * 5000,
    ],
)
def test_what_is_within_the_limits_or_for_the_route_to_refuse_passes(body: str) -> None:
    smallest = RequestLimits(max_messages=1, max_choices=1, max_answers=1, max_options=2, max_output_tokens=5)

    require_small_body(smallest, body.encode())


@pytest.mark.parametrize(
    ("limits", "asked", "field"),
    [
        ({"max_choices": 2}, Asked(("m",), 1, num_choices=3), "n"),
        ({"max_prompt_tokens": 2}, Asked(("m",), 3), "prompt"),
        ({"max_top_logprobs": 2}, Asked(("m",), 1, 1, num_top_logprobs=3), "top_logprobs"),
        ({"max_grammar_chars": 2}, Asked(("m",), 1, 1, grammar_chars=3), "structured_outputs"),
    ],
)
def test_what_would_be_asked_of_the_engine_is_limited_too(
    limits: dict[str, int], asked: Asked, field: str
) -> None:
    with pytest.raises(FieldError, match=rf"asks for 3 .*at most 2 \({next(iter(limits))}\)") as error:
        most_tokens(RequestLimits.model_validate(limits), asked)

    assert error.value.field == field


@given(limit=st.integers(1, 10_000), choices=st.integers(1, 128))
def test_choices_share_the_tokens_that_a_request_may_have(limit: int, choices: int) -> None:
    most = most_tokens(RequestLimits(max_output_tokens=limit), Asked(("m",), 1, num_choices=choices))

    assert most is not None
    assert most >= 1
    assert most * choices <= max(limit, choices)


def test_refusal_is_a_bad_request_of_openai_that_names_the_field() -> None:
    limits = AccessSettings(limits=RequestLimits(max_choices=2))
    client = client_of(make_app(FakeEngine([AGREED]), access=limits))

    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model=ENSEMBLE, messages=HELLO, n=3)

    assert refused.value.param == "n"


# Behind vLLM's real HTTP layer

LIMITS = RequestLimits(max_prompt_tokens=40, max_output_tokens=6, max_grammar_chars=60, max_choices=8)
LONG = "a " * 60
"""More than forty tokens for any tokenizer."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    from tests.support.scripted_core import Said, ScriptedAsyncLLM
    from tests.support.scripted_vllm import NAME, serving
    from tests.support.tiny import random_adapters, tiny_llama

    folder = tmp_path_factory.mktemp("models")
    ensemble = random_adapters(tiny_llama(folder / "tiny-base"), folder / NAME, num_members=2)
    access = AccessSettings(limits=LIMITS)
    with serving(ensemble, "--enable-scale-out", engine_of=ScriptedAsyncLLM, access=access) as server:
        server.engine.play([Said(letter) for letter in "abcdefghijklmnop"])
        server.wait_until_ready()
        yield server


def long_talk() -> Any:
    return [{"role": "user", "content": LONG}]


BASE_AND_ENSEMBLE = pytest.mark.parametrize("model", ["tiny-ensemble", "tiny-ensemble/member-0", "tiny-base"])
LONG_PROMPTS: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": long_talk()},
    "/v1/completions": {"prompt": LONG},
    "/v1/responses": {"input": LONG},
    "/v1/messages": {"messages": long_talk(), "max_tokens": 3},
    "/v1/chat/completions/batch": {"messages": [HELLO, long_talk()]},
    "/invocations": {"messages": long_talk()},
    "/inference/v1/generate": {"token_ids": [65] * 60, "sampling_params": {"max_tokens": 3}},
}


@pytest.mark.vllm
@BASE_AND_ENSEMBLE
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("path", LONG_PROMPTS)
def test_prompt_above_the_limit_is_a_bad_request_on_every_route_and_costs_nothing(
    server: Any, path: str, stream: bool, model: str
) -> None:
    before = len(server.engine.engine_core.said)
    streamed = {"stream": True} if stream and not path.endswith("/batch") else {}

    answer = server.post(path, {"model": model, **LONG_PROMPTS[path], **streamed})

    assert answer.status_code == 400, answer.text
    assert "this server takes at most 40 (max_prompt_tokens)" in answer.json()["error"]["message"]
    assert len(server.engine.engine_core.said) == before


@pytest.mark.vllm
@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/uncertainty", {"prompt": "hello", "answers": [LONG]}),
        ("/v1/decisions", {"input": LONG, "questions": [{"type": "predicate", "instructions": "b"}]}),
    ],
)
def test_what_is_scored_counts_as_prompt(server: Any, path: str, body: dict[str, Any]) -> None:
    answer = server.post(path, body)

    assert answer.status_code == 400, answer.text
    assert "(max_prompt_tokens)" in answer.json()["error"]["message"]


SHORT_PROMPTS: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": HELLO},
    "/v1/completions": {"prompt": "hello", "max_tokens": None},
    "/v1/responses": {"input": "hello"},
    "/v1/chat/completions/batch": {"messages": [HELLO, HELLO]},
    "/invocations": {"messages": HELLO},
    "/inference/v1/generate": {"token_ids": [65], "sampling_params": {}},
}


@pytest.mark.vllm
@BASE_AND_ENSEMBLE
@pytest.mark.parametrize("path", SHORT_PROMPTS)
def test_request_that_names_no_number_of_tokens_gets_the_limit(server: Any, path: str, model: str) -> None:
    before = len(server.engine.engine_core.said)

    answer = server.post(path, {"model": model, **SHORT_PROMPTS[path]})

    assert answer.status_code == 200, answer.text
    asked = server.engine.engine_core.said[before:]
    assert asked
    assert all(each.request.sampling_params.max_tokens <= 6 for each in asked)


@pytest.mark.vllm
@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("/v1/chat/completions", {"messages": HELLO, "max_completion_tokens": 7}, "max_completion_tokens"),
        ("/v1/completions", {"prompt": "hello", "max_tokens": 4, "n": 2}, "max_tokens"),
        ("/v1/responses", {"input": "hello", "max_output_tokens": 7}, "max_output_tokens"),
        (
            "/inference/v1/generate",
            {"token_ids": [65], "sampling_params": {"max_tokens": 7}},
            "sampling_params.max_tokens",
        ),
    ],
)
def test_larger_number_of_tokens_than_the_limit_is_a_bad_request(
    server: Any, path: str, body: dict[str, Any], field: str
) -> None:
    error = server.post(path, body).json()["error"]

    assert (error["code"], error["param"]) == (400, field)


SCHEMA = {"type": "object", "properties": {f"p{number}": {"type": "string"} for number in range(9)}}
GRAMMARS: list[tuple[str, dict[str, Any]]] = [
    (
        "/v1/chat/completions",
        {
            "messages": HELLO,
            "response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": SCHEMA}},
        },
    ),
    ("/v1/completions", {"prompt": "hello", "structured_outputs": {"regex": "(a|b)*" * 20}}),
    ("/v1/completions", {"prompt": "hello", "structured_outputs": {"choice": ["x" * 40, "y" * 40]}}),
    (
        "/v1/responses",
        {"input": "hello", "text": {"format": {"type": "json_schema", "name": "s", "schema": SCHEMA}}},
    ),
]


@pytest.mark.vllm
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize(("path", "body"), GRAMMARS, ids=[path for path, _ in GRAMMARS])
def test_grammar_above_the_limit_is_a_bad_request_before_it_is_compiled(
    server: Any, path: str, body: dict[str, Any], stream: bool
) -> None:
    answer = server.post(path, {**body, "stream": stream})

    assert answer.status_code == 400, answer.text
    assert "this server takes at most 60 (max_grammar_chars)" in answer.json()["error"]["message"]
