"""The prompt of a row and the prompt that vLLM's own chat route makes of a request with the same content."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from softspec.artefact.base import context_length, end_of_turn_ids
from softspec.train.data.content_format import takes_parts
from softspec.train.data.reading import Reading, read_examples
from softspec.train.members.base import load_tokenizer
from tests.support.chat_families import FAMILIES
from tests.support.tiny import tiny_config, tiny_llama, tiny_tokenizer

pytestmark = pytest.mark.vllm

USER = {"role": "user", "content": "Weather?"}
ANSWER = {"role": "assistant", "content": "Sunny"}
CALL = {
    "id": "c1",
    "type": "function",
    "function": {"name": "weather", "arguments": '{"city": "Rome", "when": null}'},
}
CALLS = {"role": "assistant", "content": None, "tool_calls": [CALL]}
RESULT = {"role": "tool", "content": "sun", "tool_call_id": "c1"}
TOOL = {
    "type": "function",
    "function": {"parameters": {"type": "object", "properties": {}}, "name": "weather"},
}
DESCRIBED = {"function": {"name": "weather", "strict": True, "description": "Now"}, "type": "function"}
PARTS = [{"type": "text", "text": "One"}, {"type": "text", "text": ""}, {"type": "text", "text": "two"}]

AS_JSON = """\
{{ tools | tojson }}{{ mood | default('-') | tojson }}{{ enable_thinking }}
{% for message in messages %}{{ message | tojson }}{{ eos_token if message.role == 'assistant' }}
{% endfor %}"""
"""Shows everything that the server gives to a template."""
TEMPLATES = {
    "json": AS_JSON,
    "json-parts": "{% for m in messages %}{% for part in m['content'] %}{% endfor %}{% endfor %}" + AS_JSON,
    "json-macro": "{% macro show(c) %}{% for part in c %}{% endfor %}{% endmacro %}"
    "{% for m in messages %}{{ show(m.content) }}{% endfor %}" + AS_JSON,
    "json-developer": "{% if messages[0].role == 'developer' %}{% endif %}" + AS_JSON,
    "json-slice": "{% set rest = messages[1:] %}{% for m in rest %}{% for p in m.content | list %}{% endfor %}"
    "{% endfor %}" + AS_JSON,
    "json-other-loop": "{% for m in messages %}{% for call in m.tool_calls %}{% endfor %}{% endfor %}"
    + AS_JSON,
}
REQUESTS: dict[str, dict[str, Any]] = {
    "plain": {"messages": [USER]},
    "systems": {"messages": [{"role": "system", "content": "A"}, {"role": "system", "content": "B"}, USER]},
    "tools": {"messages": [USER], "tools": [TOOL, DESCRIBED]},
    "tool-calls": {"messages": [USER, CALLS, RESULT], "tools": [TOOL]},
    "text-beside-calls": {"messages": [USER, {**CALLS, "content": "Let me see"}, RESULT]},
    "no-content": {"messages": [USER, {"role": "assistant", "tool_calls": [CALL]}, RESULT]},
    "empty-calls": {"messages": [USER, {**ANSWER, "tool_calls": []}, USER]},
    "named": {"messages": [{**USER, "name": "Ann"}, {**ANSWER, "name": "Bob"}, USER]},
    "other-keys": {"messages": [{**USER, "id": 7, "rating": 5}, {**ANSWER, "refusal": None}, USER]},
    "parts": {"messages": [{"role": "user", "content": PARTS}]},
    "parts-with-keys": {"messages": [{"role": "user", "content": [{**PARTS[0], "cache_control": {"a": 1}}]}]},
    "parts-of-a-tool": {"messages": [USER, CALLS, {**RESULT, "content": PARTS}]},
    "no-parts": {"messages": [{"role": "user", "content": []}]},
    "empty": {"messages": [{"role": "user", "content": ""}]},
    "reasoning": {"messages": [USER, {**ANSWER, "reasoning_content": "hm"}, USER]},
    "reasoning-key": {"messages": [USER, {**ANSWER, "reasoning": "hm"}, USER]},
    "developer": {"messages": [{"role": "developer", "content": "Be brief"}, USER]},
    "developer-later": {
        "messages": [{"role": "system", "content": "A"}, USER, {"role": "developer", "content": "B"}]
    },
    "developer-parts": {
        "messages": [{"role": "developer", "content": PARTS}, USER, {"role": "system", "content": "S"}]
    },
    "other-role": {"messages": [{"role": "ipython", "content": "1"}, USER]},
    "arguments": {
        "messages": [USER],
        "chat_template_kwargs": {"mood": "good", "enable_thinking": False, "x": 1},
    },
    "unset-arguments": {
        "messages": [USER],
        "chat_template_kwargs": {"mood": None, "enable_thinking": "auto"},
    },
    "keys-of-calls": {"messages": [USER, {**CALLS, "tool_calls": [{**CALL, "more": [1]}]}, RESULT]},
    "empty-arguments": {
        "messages": [USER, {**CALLS, "tool_calls": [{**CALL, "function": {"name": "w", "arguments": ""}}]}]
    },
}

Serve = Callable[[str, dict[str, Any]], list[int]]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("served") / "base")


@pytest.fixture(scope="module")
def serve(base: Path) -> Serve:
    """The prompt ids that vLLM's chat route makes of a request under a template; no engine runs."""
    from vllm.config import DeviceConfig, ModelConfig, VllmConfig
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
    from vllm.renderers.online_renderer import OnlineRenderer
    from vllm.renderers.registry import renderer_from_config

    model = ModelConfig(model=str(base), tokenizer=str(base), dtype="float32")
    renderer = renderer_from_config(VllmConfig(model_config=model, device_config=DeviceConfig("cpu")))
    online = OnlineRenderer(
        model,
        renderer,
        request_logger=None,
        chat_template=None,
        chat_template_content_format="auto",
        trust_request_chat_template=True,
        enable_auto_tools=True,
        tool_parser="hermes",
    )

    def serve(template: str, request: dict[str, Any]) -> list[int]:
        parsed = ChatCompletionRequest.model_validate({"model": "m", **json.loads(json.dumps(request))})
        parsed.chat_template = template
        result = asyncio.run(online.render_chat(parsed))
        assert isinstance(result, tuple), result
        return list(result[1][0]["prompt_token_ids"])

    return serve


def trained(base: Path, template: str, request: dict[str, Any]) -> list[int]:
    """The prompt ids of a row with the same content and an answer."""
    tokenizer = load_tokenizer(str(base))
    tokenizer.chat_template = template
    row = {**request, "messages": [*request["messages"], ANSWER]}
    (example,) = read_examples([("row", row)], Reading(tokenizer, {tokenizer.eos_token_id}, 10_000))
    return list(example.prompt_ids)


@pytest.mark.parametrize("request_name", REQUESTS)
@pytest.mark.parametrize("template", TEMPLATES)
def test_a_row_is_trained_behind_the_prompt_that_vllm_serves(
    base: Path, serve: Serve, template: str, request_name: str
) -> None:
    tokenizer, request = load_tokenizer(str(base)), REQUESTS[request_name]

    found, served = trained(base, TEMPLATES[template], request), serve(TEMPLATES[template], request)

    assert tokenizer.decode(found) == tokenizer.decode(served)
    assert found == served


@pytest.mark.parametrize("name", FAMILIES)
def test_templates_take_parts_where_vllm_gives_them(name: str) -> None:
    from vllm.renderers.hf import _detect_content_format

    template = FAMILIES[name].template

    assert takes_parts(template) == (_detect_content_format(template, default="string") == "openai")


@pytest.mark.parametrize(
    ("generation", "config"),
    [
        ({"eos_token_id": [2, 0]}, {}),
        ({"eos_token_id": 0}, {"eos_token_id": 1}),
        ({"do_sample": True}, {"eos_token_id": [1, 2]}),
        (None, {"eos_token_id": [1, 0]}),
        (None, {"eos_token_id": 1}),
        (None, {}),
        ("not JSON", {"eos_token_id": [1, 0]}),
    ],
)
def test_answers_end_at_the_tokens_at_which_vllm_stops(
    tmp_path: Path, generation: Any, config: dict[str, Any]
) -> None:
    from vllm import SamplingParams
    from vllm.config import ModelConfig

    tiny_config().save_pretrained(tmp_path)
    tokenizer = tiny_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    changed = {**json.loads((tmp_path / "config.json").read_text()), **config}
    (tmp_path / "config.json").write_text(json.dumps(changed))
    if generation is not None:
        content = generation if isinstance(generation, str) else json.dumps(generation)
        (tmp_path / "generation_config.json").write_text(content)

    parameters = SamplingParams()
    listed = ModelConfig(model=str(tmp_path), dtype="float32").try_get_generation_config()
    parameters.update_from_generation_config(listed, tokenizer.eos_token_id)

    assert end_of_turn_ids(tokenizer, str(tmp_path), None) == parameters.all_stop_token_ids


@pytest.mark.parametrize(
    "settings",
    [
        {"max_position_embeddings": 64},
        {"max_position_embeddings": 64, "rope_scaling": {"rope_type": "linear", "factor": 2.0}},
        {"max_position_embeddings": 64, "rope_scaling": {"rope_type": "dynamic", "factor": 3.0}},
        {
            "max_position_embeddings": 64,
            "rope_scaling": {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 32},
        },
    ],
)
def test_a_row_may_be_as_long_as_what_vllm_serves(tmp_path: Path, settings: dict[str, Any]) -> None:
    from vllm.config import ModelConfig

    tiny_tokenizer().save_pretrained(tmp_path)
    tiny_config().save_pretrained(tmp_path)
    changed = {**json.loads((tmp_path / "config.json").read_text()), **settings}
    changed.pop("rope_parameters", None)
    (tmp_path / "config.json").write_text(json.dumps(changed))

    served = ModelConfig(model=str(tmp_path), dtype="float32").max_model_len

    assert context_length(str(tmp_path), None) == served
