"""Conversations under templates: where an answer begins and ends, what a template must show, and what it objects to."""

import json
from datetime import date
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from softspec.errors import DataError
from softspec.train.data.reading import Reading, read_examples
from softspec.train.data.units import Example
from tests.support.chat_families import FAMILIES, Family
from tests.support.tiny import CHATML, tiny_tokenizer

HI = {"role": "user", "content": "Hi"}
YES = {"role": "assistant", "content": "Yes"}
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Rome"}}}
CALLS = {"role": "assistant", "content": None, "tool_calls": [{"id": "c1", **CALL}]}
RESULT = {"role": "tool", "content": "sun", "tool_call_id": "c1"}
TOOL = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}},
}


def with_template(template: str, **names: Any) -> PreTrainedTokenizerFast:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    for name, value in names.items():
        setattr(tokenizer, name, value)
    return tokenizer


def read(base: Family | PreTrainedTokenizerFast, row: dict[str, Any], **settings: Any) -> list[Example]:
    """What a row gives; the server stops at the base's own tokens."""
    if isinstance(base, Family):
        tokenizer, stops = base.tokenizer(), base.stop_ids
    else:
        tokenizer, stops = base, {base.eos_token_id}
    reading = Reading(tokenizer, settings.pop("stop_ids", stops), 1000, **settings)
    return list(read_examples([("f:7", row)], reading))


def texts(base: Family | PreTrainedTokenizerFast, row: dict[str, Any], **settings: Any) -> tuple[str, str]:
    """Prompt and completion of the only example, as text."""
    (example,) = read(base, row, **settings)
    tokenizer = base.tokenizer() if isinstance(base, Family) else base
    return tokenizer.decode(example.prompt_ids), tokenizer.decode(example.completion_ids)


def test_an_answer_ends_at_the_first_end_behind_it() -> None:
    """Some templates put an end of text behind the end of the last turn."""
    tokenizer = with_template(CHATML + "{% if not add_generation_prompt %}<|endoftext|>{% endif %}")

    assert texts(tokenizer, {"messages": [HI, YES]}, stop_ids={0, 2})[1] == "Yes<|im_end|>"


@pytest.mark.parametrize("said", ["a<|im_end|>b", "a<|im_end|>", "<|im_end|>\n<|im_end|>\nYes"])
def test_an_end_in_the_answer_itself_does_not_cut_it(said: str) -> None:
    row = {"messages": [HI, {"role": "assistant", "content": said}]}

    assert texts(tiny_tokenizer(), row)[1] == said + "<|im_end|>"


def test_a_template_whose_end_is_no_stop_of_the_server_is_refused() -> None:
    tokenizer = with_template(CHATML, eos_token="<|endoftext|>")

    with pytest.raises(DataError) as error:
        read(tokenizer, {"messages": [HI, YES]})

    assert str(error.value) == (
        "f:7: the chat template ends the answer with '<|im_end|>', at which the server does not stop (it stops at "
        "'<|endoftext|>'); add 2 to eos_token_id in the base's generation_config.json"
    )


def test_a_template_that_ends_an_answer_with_nothing_is_refused() -> None:
    tokenizer = with_template("{% for m in messages %}{{ m.content }}{% endfor %}")

    with pytest.raises(DataError, match="f:7: the chat template puts no token behind the answer"):
        read(tokenizer, {"messages": [HI, YES]})


def test_tools_and_arguments_reach_the_template() -> None:
    qwen3 = FAMILIES["qwen3"]
    row = {"messages": [HI, YES], "chat_template_kwargs": {"enable_thinking": False}}

    assert "<tools>\n" in texts(FAMILIES["chatml"], {"messages": [HI, YES], "tools": [TOOL]})[0]
    assert texts(qwen3, row)[0].endswith("<think>\n\n</think>\n\n")
    assert texts(qwen3, row)[1] == "Yes<|im_end|>"
    assert texts(qwen3, {"messages": [HI, YES]})[1] == "<think>\n\n</think>\n\nYes<|im_end|>"


def test_tools_and_arguments_may_be_json_text() -> None:
    """Tables keep objects with different keys as text."""
    called = {**CALL, "function": {"name": "weather", "arguments": '{"city": "Rome"}'}}
    as_text = {"messages": [HI, {**CALLS, "tool_calls": [called]}], "tools": json.dumps([TOOL])}

    assert read(FAMILIES["chatml"], as_text) == read(
        FAMILIES["chatml"], {"messages": [HI, CALLS], "tools": [TOOL]}
    )


@pytest.mark.parametrize(
    "content", [{"content": None}, {"content": ""}, {}], ids=["null", "empty", "missing"]
)
def test_a_tool_call_may_be_the_answer(content: dict[str, Any]) -> None:
    answer = {"role": "assistant", "tool_calls": CALLS["tool_calls"], **content}

    found = texts(FAMILIES["llama-3-dated"], {"messages": [HI, answer], "tools": [TOOL]})[1]

    assert found == '{"name": "weather", "parameters": {"city": "Rome"}}<|eot_id|>'


def test_a_tool_call_in_the_middle_is_part_of_the_prompt() -> None:
    prompt, completion = texts(FAMILIES["chatml"], {"messages": [HI, CALLS, RESULT, YES], "tools": [TOOL]})

    assert '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>' in prompt
    assert completion == "Yes<|im_end|>"


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (CALLS, "does not show all of the assistant's text and tool calls|does not show the tool calls"),
        ({**YES, "reasoning_content": "because"}, "does not show the reasoning"),
    ],
)
def test_an_answer_that_the_template_does_not_show_is_refused(answer: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(tiny_tokenizer(), {"messages": [HI, answer]})


def test_keys_of_an_answer_that_no_request_brings_to_the_template_are_refused() -> None:
    tokenizer = with_template(
        CHATML.replace("{{ message['content'] }}", "{{ message['thinking'] }}{{ message['content'] }}")
    )

    assert texts(tokenizer, {"messages": [HI, {**YES, "rating": 5}]})[1] == "Yes<|im_end|>"
    with pytest.raises(DataError, match="shows thinking of an answer, which no request brings to it"):
        read(tokenizer, {"messages": [HI, {**YES, "thinking": "hm"}]})


@pytest.mark.parametrize("change", ["upper", "tojson", "replace('s', 'z')"])
def test_a_template_that_changes_the_answer_is_refused(change: str) -> None:
    tokenizer = with_template(CHATML.replace("message['content']", f"message['content'] | {change}"))

    with pytest.raises(
        DataError, match="f:7: the chat template does not show the answer of the assistant as given"
    ):
        read(tokenizer, {"messages": [HI, {"role": "assistant", "content": 'He says "yes"'}]})


def test_thinking_that_the_template_cuts_off_is_learnt_as_it_was_given() -> None:
    row = {"messages": [HI, {"role": "assistant", "content": "<think>\nhm</think>\n\nYes"}]}

    assert texts(FAMILIES["r1-older"], row) == (
        "<|begin|><|User|>Hi<|Assistant|>",
        "<think>\nhm</think>\n\nYes<|end|>",
    )


@pytest.mark.parametrize(
    "answer",
    [
        {"content": "hm\n</think>\n\nYes"},
        {"content": "<think>\nhm\n</think>\n\nYes"},
        {"content": "Yes", "reasoning_content": "hm"},
    ],
)
def test_thinking_that_the_prompt_opens_goes_on_from_there(answer: dict[str, Any]) -> None:
    row = {"messages": [HI, {"role": "assistant", **answer}]}

    assert texts(FAMILIES["r1"], row) == (
        "<|begin|><|User|>Hi<|Assistant|><think>\n",
        "hm\n</think>\n\nYes<|end|>",
    )


def test_an_answer_that_never_closes_the_thinking_is_refused() -> None:
    with pytest.raises(
        DataError, match="f:7: the prompt ends in '<think>', but the answer never comes to '</think>'"
    ):
        read(FAMILIES["r1"], {"messages": [HI, YES]})


def test_a_template_with_a_clock_is_given_the_date_of_the_start() -> None:
    day = date(2024, 2, 29)

    prompt, _ = texts(FAMILIES["llama-3-dated"], {"messages": [HI, YES]}, started_on=day)

    assert "Today Date: 29 Feb 2024 00:00:00" in prompt


@pytest.mark.parametrize(
    ("template", "messages", "reason"),
    [
        (
            FAMILIES["gemma"].template,
            [{"role": "system", "content": "S"}, HI, YES],
            "System role not supported",
        ),
        (FAMILIES["gemma"].template, [HI, HI, YES], "Conversation roles must alternate"),
        (FAMILIES["gemma"].template, [YES, HI, YES], "Conversation roles must alternate"),
        ("{{ messages[0]['name'] + 'x' }}", [HI, YES], "'dict object' has no attribute 'name'"),
        ("{{ messages[0].content + 1 }}", [HI, YES], "TypeError: "),
        ("{{ messages[0].content | int / 0 }}", [HI, YES], "ZeroDivisionError: "),
        ("{{ '%d' | format(messages[0].content) }}", [HI, YES], "TypeError: "),
        ("{% for %}", [HI, YES], "Expected"),
        ("{{ messages[0].content.encode('ascii', errors=7) }}", [HI, YES], "TypeError: "),
    ],
)
def test_what_a_template_objects_to_is_told_with_the_row(
    template: str, messages: list[dict[str, Any]], reason: str
) -> None:
    with pytest.raises(DataError) as error:
        read(with_template(template), {"messages": messages})

    assert str(error.value).startswith(f"f:7: the chat template refuses this conversation: {reason}")
    assert "\n" not in str(error.value)


def test_named_templates_without_a_default_are_refused() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = {"rag": CHATML, "tool_use": CHATML}

    with pytest.raises(DataError, match="f:7: the chat template refuses this conversation: ValueError"):
        read(tokenizer, {"messages": [HI, YES]})
    assert read(tokenizer, {"messages": [HI, YES], "tools": [TOOL]})


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"messages": [{"role": "user", "content": None}, YES]}, "expected text as 'content'"),
        ({"messages": [HI, {"role": "assistant", "content": None}]}, "expected text as 'content'"),
        ({"messages": [HI, {**YES, "content": [{"type": "image_url"}]}]}, "expected parts of text"),
        ({"messages": [{**HI, "content": [{"type": "text", "text": 3}]}, YES]}, "expected text as 'text'"),
        ({"messages": [HI, {**YES, "function_call": {"name": "f"}}]}, "expected 'tool_calls'"),
        (
            {"messages": [HI, {**CALLS, "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}]},
            "not JSON",
        ),
        (
            {"messages": [HI, {**CALLS, "tool_calls": [{"function": {"name": "f", "arguments": "[]"}}]}]},
            "expected an object",
        ),
        (
            {"messages": [HI, YES], "tools": [{"name": "f", "parameters": {}}]},
            "tools.0.function: missing",
        ),
        ({"messages": [HI, {**YES, "reasoning": 5}]}, "expected text as 'reasoning_content'"),
        ({"messages": [HI, YES], "tools": "weather"}, "tools: expected a list or an object"),
        ({"messages": [HI, YES], "chat_template_kwargs": {"tokenize": True}}, "tokenize is the server's own"),
        (
            {"prompt": "a", "completion": "b", "tools": [TOOL]},
            "'tools' and 'chat_template_kwargs' need messages",
        ),
    ],
)
def test_what_no_request_could_say_is_refused(row: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message) as error:
        read(FAMILIES["chatml"], row)

    assert str(error.value).startswith("f:7: ")


def test_an_empty_list_of_tools_is_none() -> None:
    assert read(FAMILIES["chatml"], {"messages": [HI, YES], "tools": []}) == read(
        FAMILIES["chatml"], {"messages": [HI, YES]}
    )


def test_parts_of_text_are_joined_where_the_template_wants_text() -> None:
    parts = [{"type": "text", "text": "One"}, {"type": "text", "text": "two"}]

    prompt, completion = texts(
        tiny_tokenizer(), {"messages": [{**HI, "content": parts}, {**YES, "content": parts}]}
    )

    assert "<|im_start|>user\nOne\ntwo<|im_end|>" in prompt
    assert completion == "One\ntwo<|im_end|>"
