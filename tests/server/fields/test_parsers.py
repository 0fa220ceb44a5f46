"""Arguments are found in the markup of vLLM's tool parsers, which make new JSON of them."""

import re
from typing import Any

import pytest

from softspec.server.fields.message import Message
from softspec.server.fields.places import leaves_in
from tests.support.tiny import tiny_tokenizer

pytestmark = pytest.mark.vllm

CALL = '{"city": "Zürich", "n": {"d": 1.50, "ok": true}}'
LEAVES = {"city": '"Zürich"', "n/d": "1.50", "n/ok": "true"}
JSON_MARKUP = {
    "apertus": '<|tools_prefix|>[{"look": %s}]<|tools_suffix|>',
    "deepseek_v3": "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>look\n```json\n%s\n```"
    "<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
    "deepseek_v31": "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>look<｜tool▁sep｜>%s<｜tool▁call▁end｜>"
    "<｜tool▁calls▁end｜>",
    "ernie45": '<tool_call>\n{"name": "look", "arguments": %s}\n</tool_call>\n',
    "granite": '<|tool_call|>[{"name": "look", "arguments": %s}]',
    "granite-20b-fc": '<function_call> {"name": "look", "arguments": %s}',
    "granite4": '<tool_call>\n{"name": "look", "arguments": %s}\n</tool_call>',
    "hermes": '<tool_call>\n{"name": "look", "arguments": %s}\n</tool_call>',
    "hunyuan_a13b": '<tool_calls>[{"name": "look", "arguments": %s}]</tool_calls>',
    "internlm": 'I look.<|action_start|><|plugin|>{"name": "look", "parameters": %s}<|action_end|>',
    "jamba": '<tool_calls>[\n {"name": "look", "arguments": %s}\n]</tool_calls>',
    "kimi_k2": "<|tool_calls_section_begin|><|tool_call_begin|>functions.look:0<|tool_call_argument_begin|>%s"
    "<|tool_call_end|><|tool_calls_section_end|>",
    "llama3_json": '<|python_tag|>{"name": "look", "parameters": %s}',
    "longcat": '<longcat_tool_call>{"name": "look", "arguments": %s}</longcat_tool_call>',
    "mistral": '[TOOL_CALLS][{"name": "look", "arguments": %s}]',
    "phi4_mini_json": 'functools[{"name": "look", "arguments": %s}]',
    "xlam": '[{"name": "look", "arguments": %s}]',
}
OTHER_MARKUP = {
    "pythonic": '[look(city="Zürich", n={"d": 1.5, "ok": True})]',
    "qwen3_coder": "<tool_call>\n<function=look>\n<parameter=city>\nZürich\n</parameter>\n</function>\n</tool_call>",
}


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    """It has the marks of every parser."""
    texts = " ".join([*JSON_MARKUP.values(), *OTHER_MARKUP.values()])
    tokenizer = tiny_tokenizer(vocab_size=300)
    tokenizer.add_tokens(sorted(set(re.findall(r"<[^<>]*>|\[TOOL_CALLS\]", texts))), special_tokens=True)
    return tokenizer


def parsed(name: str, text: str, tokenizer: Any) -> Message:
    """What vLLM's parser makes of a text."""
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
    from vllm.tool_parsers import ToolParserManager

    parameters = {"type": "object", "properties": {"city": {"type": "string"}, "n": {"type": "object"}}}
    tool = {"type": "function", "function": {"name": "look", "parameters": parameters}}
    request = ChatCompletionRequest.model_validate(
        {"messages": [{"role": "user", "content": "?"}], "tools": [tool]}
    )
    parser = ToolParserManager.get_tool_parser(name)(tokenizer, request.tools)
    found = parser.extract_tool_calls(text, request)
    assert found.tools_called
    return Message(arguments={n: call.function.arguments for n, call in enumerate(found.tool_calls)})


@pytest.mark.parametrize("name", JSON_MARKUP)
def test_arguments_in_json_are_found(name: str, tokenizer: Any) -> None:
    text = JSON_MARKUP[name] % CALL

    leaves = leaves_in(text.encode(), parsed(name, text, tokenizer)) or ()

    found = {leaf.path: text.encode()[leaf.start : leaf.end].decode() for leaf in leaves}
    assert found == {f"/tool_calls/0/arguments/{path}": value for path, value in LEAVES.items()}


@pytest.mark.parametrize("name", OTHER_MARKUP)
def test_arguments_that_were_not_drawn_as_json_have_no_leaves(name: str, tokenizer: Any) -> None:
    text = OTHER_MARKUP[name]

    assert leaves_in(text.encode(), parsed(name, text, tokenizer)) is None
