"""Prompt ids and answer ids, beside those that vLLM's own handlers send to the engine core."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from softspec.artefact.base import end_of_turn_ids
from softspec.engine.front.prompts import answer_ids, chat_end_id, chat_prompt_ids, stop_ids, text_prompt_ids
from softspec.errors import ConfigError, FieldError
from tests.support.scripted_core import Said, ScriptedAsyncLLM
from tests.support.scripted_vllm import NAME, Server, serving
from tests.support.tiny import CHATML, random_adapters, tiny_llama
from tests.train.data.test_served_prompts import ANSWER, AS_JSON, REQUESTS, TOOL, USER

pytestmark = pytest.mark.vllm

SHOWS_ALL = (
    "{{ tool_choice }}{{ reasoning_effort }}{{ documents | default('-') | tojson }}"
    + AS_JSON.replace("{{ tools", "{{ tools | default('-')")
    + "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MORE: dict[str, dict[str, Any]] = {
    "own-template": {"messages": [USER], "chat_template": CHATML},
    "no-generation-prompt": {"messages": [USER], "add_generation_prompt": False},
    "continued": {
        "messages": [USER, ANSWER],
        "chat_template": CHATML,
        "continue_final_message": True,
        "add_generation_prompt": False,
    },
    "special-tokens": {"messages": [USER], "add_special_tokens": True},
    "effort": {"messages": [USER], "reasoning_effort": "low"},
    "documents": {"messages": [USER], "documents": [{"title": "a", "text": "b"}]},
    "tools-unchosen": {"messages": [USER], "tools": [TOOL], "tool_choice": "none"},
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its template shows all that it is given; its tokenizer puts a token before texts."""
    from tokenizers import processors

    folder = tiny_llama(tmp_path_factory.mktemp("models") / "tiny-base")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = SHOWS_ALL
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", 1)]
    )
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def server(base: Path) -> Iterator[Server]:
    ensemble = random_adapters(base, base.parent / NAME, num_members=2)
    flags = ("--trust-request-chat-template", "--enable-auto-tool-choice", "--tool-call-parser", "hermes")
    with serving(ensemble, *flags, engine_of=ScriptedAsyncLLM) as server:
        server.engine.play([Said("a")])
        server.wait_until_ready()
        yield server


def sent(server: Server, path: str, **fields: Any) -> list[int]:
    """The prompt that vLLM's own handler sends to the engine core."""
    core = server.engine.play([Said("a")])
    answer = server.post(path, {"model": NAME, "max_tokens": 1, **fields})
    assert answer.status_code == 200, answer.text
    return list(core.said[0].request.prompt_token_ids)


@pytest.mark.parametrize("name", [*REQUESTS, *MORE])
def test_messages_come_to_the_prompt_of_a_chat_request(server: Server, name: str) -> None:
    fields = {**REQUESTS, **MORE}[name]
    messages, others = fields["messages"], {k: v for k, v in fields.items() if k != "messages"}

    found = server.run(chat_prompt_ids(server.app.state, messages, model=NAME, **others))

    assert found == sent(server, "/v1/chat/completions", **fields)


@pytest.mark.parametrize("prompt", ["hello", "<|im_start|>user\nhi", "naïve 😀", [65, 66], [1]])
def test_text_and_ids_come_to_the_prompt_of_a_completion_request(server: Server, prompt: Any) -> None:
    found = server.run(text_prompt_ids(server.app.state, prompt))

    assert found == sent(server, "/v1/completions", prompt=prompt)


@pytest.mark.parametrize(
    ("messages", "field"),
    [
        ([{"content": "hello"}], "messages.0"),
        ([USER, {"role": "user", "content": 5}], "messages.1"),
        ([USER, "text"], "messages.1"),
    ],
)
def test_a_malformed_conversation_is_told_with_its_place(server: Server, messages: Any, field: str) -> None:
    with pytest.raises(FieldError) as refusal:
        server.run(chat_prompt_ids(server.app.state, messages, model=NAME))

    assert refusal.value.field == field


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"tools": [{"type": "function"}]}, "tools.0"),
        ({"tools": []}, "tools"),
        ({"reasoning_effort": "extreme"}, "reasoning_effort"),
        ({"tool_choice": "auto"}, "tool_choice"),
    ],
)
def test_a_field_that_no_chat_request_may_have_is_told_by_name(
    server: Server, fields: dict[str, Any], field: str
) -> None:
    from vllm.exceptions import VLLMValidationError

    with pytest.raises((FieldError, VLLMValidationError)) as refusal:
        server.run(chat_prompt_ids(server.app.state, [USER], model=NAME, **fields))

    assert field in (getattr(refusal.value, "field", None), getattr(refusal.value, "parameter", None))


@pytest.mark.parametrize("prompt", ["", [], [320], [-1], "a" * 2000, [65] * 2000])
def test_a_prompt_that_no_completion_may_have_is_refused(server: Server, prompt: Any) -> None:
    from vllm.exceptions import VLLMClientError

    with pytest.raises((ValueError, VLLMClientError)):
        server.run(text_prompt_ids(server.app.state, prompt))


def test_an_answer_has_its_own_tokens_and_the_end_that_was_asked_for(server: Server, base: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(base)
    state = server.app.state
    plain = tokenizer.encode("Sunny", add_special_tokens=False)

    assert answer_ids(state, "Sunny", ended=False) == plain
    assert answer_ids(state, "Sunny", ended=True) == [*plain, tokenizer.eos_token_id]
    assert answer_ids(state, "Sunny", ended=True, end_id=0) == [*plain, 0]
    assert answer_ids(state, "", ended=True) == [tokenizer.eos_token_id]
    assert answer_ids(state, "Sunny<|im_end|>", ended=True) == [*plain, tokenizer.eos_token_id]


def test_an_answer_longer_than_the_context_is_refused_before_it_is_read(server: Server) -> None:
    with pytest.raises(ConfigError, match="1000000 characters is longer than the model's 1024 tokens"):
        answer_ids(server.app.state, "a" * 1_000_000, ended=True)


def test_answers_end_where_vllm_and_training_say_so(server: Server, base: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(base)

    assert stop_ids(server.app.state) == end_of_turn_ids(tokenizer, str(base), None)


@pytest.mark.parametrize(
    ("template", "end"),
    [
        ("{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}", 2),
        ("{% for m in messages %}{{ m.content }}\n<|im_end|><|endoftext|>{% endfor %}", 2),
        ("{% for m in messages %}{{ m.content }}<|im_start|>{% endfor %}", None),
        ("{% for m in messages %}{{ m.role }}<|im_end|>{% endfor %}", None),
    ],
)
def test_an_answer_to_messages_ends_as_the_template_ends_it(
    server: Server, template: str, end: int | None
) -> None:
    work = chat_end_id(server.app.state, model=NAME, chat_template=template)
    if end is None:
        with pytest.raises(ConfigError, match="no token at which the server stops"):
            server.run(work)
    else:
        assert server.run(work) == end
