"""Which part of an answer is doubtful, around vLLM's real handlers, parsers and clients; a token is one byte.

The engine gives every token another log-probability, so a leaf's sum tells of which tokens it was made.
"""

import json
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import BaseModel

from tests.support.documents import blocks
from tests.support.tiny import random_adapters, tiny_llama, tiny_tokenizer

pytestmark = pytest.mark.vllm

NAME = "tiny-ensemble"
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}}
TOOL: Any = {"type": "function", "function": {"name": "look", "parameters": PARAMETERS}}
SCHEMA: Any = {"type": "json_schema", "json_schema": {"name": "c", "schema": PARAMETERS}}
ORDER = '{"items": [{"price": 12.5, "sku": "é\\u00e9 😀"}], "ok": true, "note": ""}'
SPELLED = {"/items/0/price": "12.5,", "/items/0/sku": '"é\\u00e9 😀"', "/ok": "true", "/note": '""'}
STRUCTURED: dict[str, dict[str, Any]] = {
    "json_object": {"response_format": {"type": "json_object"}},
    "json_schema": {"response_format": SCHEMA},
    "structured_outputs": {"extra_body": {"structured_outputs": {"json": PARAMETERS}}},
}
JSON_TEXT: dict[str, Any] = {"extra_body": {"response_format": {"type": "json_object"}}, "max_tokens": 300}
CALL = '{"city": "Zürich", "days": 3}'
CALLED = {"/tool_calls/0/arguments/city": '"Zürich"', "/tool_calls/0/arguments/days": "3}"}
NAMED = {"type": "function", "function": {"name": "look"}}
HERMES = f'<tool_call>\n{{"name": "look", "arguments": {CALL}}}\n</tool_call>'
CALLS: dict[str, tuple[str, Any]] = {
    "auto": (HERMES, "auto"),
    "required": (HERMES, "required"),
    "named": (HERMES, NAMED),
    "required, as a list": (f'[{{"name": "look", "parameters": {CALL}}}]', "required"),
    "named, arguments alone": (CALL, NAMED),
}
"""What a model says that must call; in JSON where its parser has no grammar of its own for calls."""


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A server with tools and reasoning, whose tokenizer has the marks of thinking."""
    from tests.support.scripted_vllm import serving
    from tests.support.spoken_vllm import SpokenAsyncLLM

    folder = tmp_path_factory.mktemp("models")
    base = tiny_llama(folder / "tiny-base")
    tokenizer = tiny_tokenizer(vocab_size=318)
    tokenizer.add_tokens(["<think>", "</think>"])
    tokenizer.save_pretrained(base)
    ensemble = random_adapters(base, folder / "ensemble", num_members=2)
    flags = ("--enable-auto-tool-choice", "--tool-call-parser", "hermes", "--reasoning-parser", "deepseek_r1")
    with serving(ensemble, *flags, engine_of=SpokenAsyncLLM, SOFTSPEC_ALLOW_UNTESTED="1") as server:
        yield server


@pytest.fixture
def server(running: Any) -> Any:
    running.engine.text, running.engine.rivals = f"<think>{ORDER}?</think>{ORDER}", {}
    return running


def asked(detail: str | None = None, **fields: Any) -> dict[str, Any]:
    """A request's fields, of which the extension is one."""
    extra = {} if detail is None else {"uncertainty": {"detail": detail}}
    return {**fields, "extra_body": {**fields.get("extra_body", {}), **extra}}


def last(chunks: list[Any], index: int = 0) -> Any:
    return [choice for chunk in chunks for choice in chunk.choices if choice.index == index][-1]


def spelled(server: Any, fields: list[dict[str, Any]]) -> dict[str, str]:
    """The bytes of the tokens that belong to each leaf, by counting; and that its numbers are theirs."""
    tokens = server.engine._script()
    decode = server.app.state.softspec_chat.decode
    found = {}
    for field in fields:
        steps = range(field["first_token"] - 1, field["first_token"] - 1 + field["num_tokens"])
        assert field["log_prob"] == pytest.approx(sum(-0.5 - step for step in steps))
        assert field["epistemic"] == pytest.approx(0.1 * len(steps))
        assert field["max_epistemic"] == pytest.approx(0.1)
        found[field["path"]] = bytes(byte for step in steps for byte in decode(tokens[step])[1]).decode()
    return found


@pytest.mark.parametrize("kind", STRUCTURED)
def test_structured_answers_have_fields_whole_and_streamed(server: Any, kind: str) -> None:
    whole = server.chat(**STRUCTURED[kind]).choices[0]
    chunks = server.stream(**STRUCTURED[kind])

    assert whole.message.content == ORDER
    assert spelled(server, whole.uncertainty["fields"]) == SPELLED
    assert last(chunks).uncertainty["fields"] == whole.uncertainty["fields"]
    assert sum("fields" in getattr(chunk.choices[0], "uncertainty", {}) for chunk in chunks) == 1


def test_text_completions_have_fields_too(server: Any) -> None:
    server.engine.text = ORDER

    whole = server.complete(**JSON_TEXT).choices[0]
    chunks = server.complete_stream(**JSON_TEXT)

    assert spelled(server, whole.uncertainty["fields"]) == SPELLED
    assert last(chunks).uncertainty["fields"] == whole.uncertainty["fields"]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("detail", "structured", "keys"),
    [
        (None, True, {"fields"}),
        ("summary", True, {"fields"}),
        ("tokens", True, {"fields", "tokens"}),
        ("none", True, set()),
        ("summary", False, set()),
        ("tokens", False, {"tokens"}),
        ("fields", False, {"fields"}),
    ],
)
def test_detail_says_what_comes(
    server: Any, detail: Any, structured: bool, keys: set[str], stream: bool
) -> None:
    body = asked(detail, **(STRUCTURED["json_object"] if structured else {}))

    choice = last(server.stream(**body)) if stream else server.chat(**body).choices[0]

    assert {"fields", "tokens"} & set(choice.uncertainty) == keys
    assert ("mutual_information" in choice.uncertainty) == (detail != "none")


@pytest.mark.parametrize(("text", "fields"), [(ORDER, len(SPELLED)), ("12", 1), ("No.", None)])
def test_who_asks_for_fields_has_them_if_the_text_is_json(server: Any, text: str, fields: int | None) -> None:
    server.engine.text = f"</think>{text}"

    found = server.chat(**asked("fields")).choices[0].uncertainty["fields"]

    assert (found and len(found)) == fields


@pytest.mark.parametrize("choice", CALLS)
def test_arguments_of_tool_calls_have_fields_whole_and_streamed(
    server: Any, choice: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vllm.tool_parsers.hermes_tool_parser import Hermes2ProToolParser

    text, tool_choice = CALLS[choice]
    if text != HERMES:
        monkeypatch.setattr(Hermes2ProToolParser, "structural_tag_model", None)
        monkeypatch.setattr(Hermes2ProToolParser, "supports_required_and_named", True)
    server.engine.text = f"<think>{CALL}</think>{text}"
    body = {"tools": [TOOL], "tool_choice": tool_choice}

    whole = server.chat(**body).choices[0]
    streamed = last(server.stream(**body))

    assert json.loads(whole.message.tool_calls[0].function.arguments) == json.loads(CALL)
    assert spelled(server, whole.uncertainty["fields"]) == CALLED
    assert streamed.uncertainty["fields"] == whole.uncertainty["fields"]


def test_two_calls_and_words_before_them(server: Any) -> None:
    server.engine.text = f"</think>I look. {HERMES}{HERMES}"

    whole = server.chat(tools=[TOOL]).choices[0]
    streamed = last(server.stream(tools=[TOOL]))

    assert whole.message.content.startswith("I look.")
    paths = [f"/tool_calls/{number}/arguments/{name}" for number in (0, 1) for name in ("city", "days")]
    assert [field["path"] for field in whole.uncertainty["fields"]] == paths
    assert streamed.uncertainty["fields"] == whole.uncertainty["fields"]


def test_who_may_call_and_does_not_has_no_fields(server: Any) -> None:
    server.engine.text = "</think>No."

    assert server.chat(tools=[TOOL]).choices[0].uncertainty["fields"] is None
    assert "fields" not in server.chat(tools=[TOOL], tool_choice="none").choices[0].uncertainty


@pytest.mark.parametrize(
    ("until", "finished"), [(b"12.", 0), ("\\u00e9 😀".encode()[:-1], 1), (b"tru", 2), (b'"note', 3)]
)
@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_that_is_cut_off_has_the_leaves_before(
    server: Any, until: bytes, finished: int, stream: bool
) -> None:
    """In the middle of a number, of a character, of a word, and of a key."""
    server.engine.text = ORDER
    body = {**JSON_TEXT, "max_tokens": ORDER.encode().index(until) + len(until)}

    choice = last(server.complete_stream(**body)) if stream else server.complete(**body).choices[0]

    assert choice.finish_reason == "length"
    assert spelled(server, choice.uncertainty["fields"]) == dict(list(SPELLED.items())[:finished])


def test_a_streamed_call_that_is_cut_off_has_the_arguments_before(server: Any) -> None:
    server.engine.text = f"</think>{CALLS['auto'][0]}"
    length = 1 + len(HERMES[: HERMES.index("3")].encode())

    cut = last(server.stream(tools=[TOOL], max_tokens=length))

    assert cut.finish_reason in ("length", "tool_calls")
    assert spelled(server, cut.uncertainty["fields"]) == dict([next(iter(CALLED.items()))])


def test_a_stop_string_behind_the_answer_is_none_of_it(server: Any) -> None:
    server.engine.text = f"{ORDER} {ORDER}"

    answer = server.complete(**JSON_TEXT, stop=" {").choices[0]

    assert answer.text == ORDER
    assert spelled(server, answer.uncertainty["fields"]) == SPELLED


@pytest.mark.parametrize("stream", [False, True])
def test_every_choice_has_its_own_fields(server: Any, stream: bool) -> None:
    body = {**STRUCTURED["json_object"], "n": 2, "temperature": 1}

    chunks = server.stream(**body) if stream else []
    choices = [last(chunks, index) for index in (0, 1)] if stream else server.chat(**body).choices

    assert [spelled(server, choice.uncertainty["fields"]) for choice in choices] == [SPELLED, SPELLED]


@pytest.mark.parametrize("stream", [False, True])
def test_a_withheld_answer_has_no_fields(server: Any, stream: bool) -> None:
    """They would tell what it says."""
    policy = {"action": "abstain", "metric": "max_epistemic", "threshold": 0.05, "min_tokens": 100}
    body = {
        "response_format": {"type": "json_object"},
        "extra_body": {"uncertainty": {"detail": "fields", "policy": policy}},
    }

    choice = last(server.stream(**body)) if stream else server.chat(**body).choices[0]

    assert choice.uncertainty["decision"] == "abstain"
    assert "fields" not in choice.uncertainty


def test_what_a_member_would_rather_have_said_is_told(server: Any) -> None:
    server.engine.rivals = {"t": "f", "2": "3"}

    fields = server.chat(**STRUCTURED["json_object"]).choices[0].uncertainty["fields"]

    assert {field["path"]: field["alternatives"] for field in fields if field["alternatives"]} == {
        "/items/0/price": [
            {"text": "12", "complete": False, "weight": pytest.approx(0.5), "members": [0]},
            {"text": "13", "complete": False, "weight": pytest.approx(0.5), "members": [1]},
        ],
        "/ok": [
            {"text": "t", "complete": False, "weight": pytest.approx(0.5), "members": [0]},
            {"text": "f", "complete": False, "weight": pytest.approx(0.5), "members": [1]},
        ],
    }


class Trip(BaseModel):
    city: str
    days: int


def test_the_parser_of_the_official_client_keeps_the_fields(server: Any) -> None:
    server.engine.text = f"</think>{CALL}"
    messages: Any = [{"role": "user", "content": "Where?"}]

    completion = server.run(
        server.client.chat.completions.parse(model=NAME, messages=messages, response_format=Trip)
    )

    choice = completion.choices[0]
    assert choice.message.parsed == Trip(city="Zürich", days=3)
    assert [field["path"] for field in choice.uncertainty["fields"]] == ["/city", "/days"]


def test_the_documented_form_shows_the_doubtful_values_in_red(
    server: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Here a byte of a value has 0.1 nats, so that with this threshold those of more than three are red."""
    block = next(block for block in blocks() if "def value_at" in block.text)
    completions = SimpleNamespace(create=lambda **fields: server.chat(**{**fields, "model": NAME}))
    client = SimpleNamespace(chat=SimpleNamespace(completions=completions))
    monkeypatch.setattr("openai.OpenAI", lambda **_: client)
    server.engine.text = '</think>{"a/b": ["long", 12], "~": {"": null}}'

    assert " > 0.1 " in block.text
    exec(block.text.replace(" > 0.1 ", " > 0.35 "), {})

    *lines, _ = capsys.readouterr().out.splitlines()
    red, black = "\033[31m", "\033[0m"
    assert lines == [f"{red}/a~1b/0: long{black}", f"/a~1b/1: 12{black}", f"{red}/~0/: None{black}"]
