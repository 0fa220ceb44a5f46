"""Conversations as the server renders them: the prompt of a request, and the answer that was to follow it.

In: checked turns, tools and the base's chat template. Out: text. The conversation is normalised as vLLM's chat route
does it, so the prompt is the one that a request for it becomes. Knows no token ids but those that end an answer.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any, cast

from transformers import PreTrainedTokenizerBase

from softspec.errors import DataError
from softspec.train.data.content_format import takes_parts
from softspec.train.data.rows import TEXT_PARTS, LabelledRow, Message, Tool, ToolCall

MARKER = "softspec0answer0here"
"""Stands for an answer where the template is asked what it puts before and behind one."""
OPEN_TAG = re.compile(r"([<\[])(\w+)([>\]])\s*$")


@dataclass(frozen=True)
class Rendered:
    """A prompt as the server renders it, and the supervised text behind it, which ends in the text of a stop token."""

    prompt: str
    completion: str


class Chat:
    """The chat template of a base.

    Args:
        stops: the texts of the tokens at which the server stops.
        started_on: the day that a template with a clock is given; today when empty.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, stops: Sequence[str], started_on: date | None = None
    ) -> None:
        self._tokenizer = tokenizer
        self._stops = sorted(stops, key=len, reverse=True)
        self._day = started_on or date.today()

    def rendered(self, turns: Sequence[Message], row: LabelledRow) -> Rendered:
        """The last of the turns as the answer to those before it.

        Raises:
            DataError: the template refuses the conversation, does not show all of the answer, or ends it in no token
                at which the server stops.
        """
        before = [_dumped(turn) for turn in turns[:-1]]
        answer = turns[-1]
        prompt = self._render(before, row, add_generation_prompt=True)
        marked = self._render([*before, _marked(answer)], row)
        if MARKER not in marked:
            what = "tool calls" if answer.tool_calls else "answer"
            raise DataError(f"the chat template does not show the {what} of the assistant")
        closing, dropped = self._end(marked.rpartition(MARKER)[2])
        whole = self._render([*before, _dumped(answer)], row)
        hidden = sorted(
            key
            for key, value in _all_keys(answer).items()
            if value is not None and key not in _dumped(answer)
        )
        if hidden and self._render([*before, _all_keys(answer)], row) != whole:
            raise DataError(
                f"the chat template shows {' or '.join(hidden)} of an answer, which no request brings to it; leave it "
                "out"
            )
        completion = whole[len(prompt) : len(whole) - len(dropped)]
        if whole.startswith(prompt) and whole.endswith(closing + dropped) and _shows(completion, answer):
            return Rendered(prompt, completion)
        return Rendered(prompt, _verbatim(answer, prompt, marked.partition(MARKER)[0]) + closing)

    def _end(self, behind: str) -> tuple[str, str]:
        """What a template puts behind an answer, cut after the first token at which the server stops."""
        found = [(behind.find(stop), stop) for stop in self._stops if stop in behind]
        if not found:
            raise DataError(self._no_stop(behind))
        first, stop = min(found, key=lambda each: each[0])  # of several at one place the longest
        end = first + len(stop)
        return behind[:end], behind[end:]

    def _no_stop(self, behind: str) -> str:
        stops = ", ".join(repr(stop) for stop in sorted(self._stops)) or "nothing"
        ids = self._tokenizer(behind, add_special_tokens=False)["input_ids"]
        if not ids:
            return f"the chat template puts no token behind the answer, and the server stops at {stops}"
        token = next((each for each in ids if each in self._tokenizer.added_tokens_decoder), ids[0])
        name = self._tokenizer.convert_ids_to_tokens(token)
        return (
            f"the chat template ends the answer with {name!r}, at which the server does not stop (it stops at "
            f"{stops}); add {token} to eos_token_id in the base's generation_config.json"
        )

    def _render(
        self, messages: list[dict[str, Any]], row: LabelledRow, add_generation_prompt: bool = False
    ) -> str:
        if not self._tokenizer.chat_template:
            raise DataError("the base model has no chat template; use text 'prompt' and 'completion'")
        tools = [_tool(each) for each in row.tools] if row.tools else None
        arguments = {
            key: value
            for key, value in (row.chat_template_kwargs or {}).items()
            if value is not None and value != "auto"  # the server takes both as unset
        }
        try:
            template = self._tokenizer.get_chat_template(None, tools=tools)
            shown = _for_template(messages, template)
            text = self._tokenizer.apply_chat_template(
                shown,
                tools=tools,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                strftime_now=self._day.strftime,
                **arguments,
            )
        except Exception as error:  # it is code of the base's author, and may raise anything
            raise DataError(f"the chat template refuses this conversation: {_reason(error)}") from error
        return cast("str", text)


def _reason(error: Exception) -> str:
    """What a template objected to, in one line."""
    text = " ".join(str(error).split())
    name = "" if type(error).__module__.startswith("jinja2") else f"{type(error).__name__}: "
    return f"{name}{text}" if len(text) <= 300 else f"{name}{text[:297]}..."


def _dumped(turn: Message) -> dict[str, Any]:
    """A turn with the keys that the server shows, in its order; the content still as the row has it."""
    shown: dict[str, Any] = {"role": turn.role, "content": turn.content}
    if turn.role == "assistant":
        if turn.tool_calls:
            shown["tool_calls"] = [_call(call) for call in turn.tool_calls]
        if turn.reasoning is not None:
            shown |= {"reasoning": turn.reasoning, "reasoning_content": turn.reasoning}
    if turn.role == "tool" and turn.extra("tool_call_id") is not None:
        shown["tool_call_id"] = turn.extra("tool_call_id")
    shown |= {key: turn.extra(key) for key in ("name", "task") if isinstance(turn.extra(key), str)}
    if turn.role == "developer":
        shown["tools"] = turn.extra("tools")
    return shown


def _call(call: ToolCall) -> dict[str, Any]:
    """A tool call with its keys in the order that the API's types give them."""
    function = {"arguments": call.function.arguments, "name": call.function.name}
    named = {} if call.id is None else {"id": call.id}
    extra = call.function.model_extra or {}
    return named | {"function": function | extra, "type": call.type} | (call.model_extra or {})


def _all_keys(turn: Message) -> dict[str, Any]:
    """A turn with all keys of its row, also those that no request brings to a template."""
    return (turn.model_extra or {}) | _dumped(turn)


def _tool(tool: Tool) -> dict[str, Any]:
    function = tool.function.model_dump()
    if function["strict"] is None:
        del function["strict"]
    return {"type": tool.type, "function": function}


def _for_template(messages: list[dict[str, Any]], template: str) -> list[dict[str, Any]]:
    """Content as text or as parts, and the developer's turns as the system's where the template knows no developer."""
    as_parts = takes_parts(template)
    shown = [{**each, "content": _content(each, as_parts)} for each in messages]
    knows_developer = '"developer"' in template or "'developer'" in template
    if any(each["role"] == "developer" for each in shown) and not knows_developer:
        shown = _one_system_turn(shown)
    return shown


def _content(message: Mapping[str, Any], as_parts: bool) -> str | list[dict[str, Any]]:
    content = message["content"]
    given = [content] if isinstance(content, str) else content or []
    parts = [
        _part(part)
        for part in given
        if isinstance(part, str) or part.get(TEXT_PARTS[part["type"]]) is not None
    ]
    if as_parts and message["role"] != "tool":
        return parts
    texts = [part["text"] for part in parts]
    return "\n".join(texts if as_parts else filter(None, texts))


def _part(part: str | dict[str, Any]) -> dict[str, Any]:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    others = {key: value for key, value in part.items() if key not in ("type", *TEXT_PARTS.values())}
    return {"type": "text", "text": part[TEXT_PARTS[part["type"]]], **others}


def _one_system_turn(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The turns of system and developer together as one at the beginning."""
    renamed = [
        {key: value for key, value in {**each, "role": "system"}.items() if key != "tools"}
        if each["role"] == "developer"
        else each
        for each in messages
    ]
    places = [number for number, each in enumerate(renamed) if each["role"] == "system"]
    if places == [0]:
        return renamed
    texts = [
        "\n".join(part["text"] for part in each["content"])
        if isinstance(each["content"], list)
        else each["content"]
        for each in renamed
        if each["role"] == "system"
    ]
    others = [each for each in renamed if each["role"] != "system"]
    return [{"role": "system", "content": "\n\n".join(filter(None, texts))}, *others]


def _marked(answer: Message) -> dict[str, Any]:
    """The answer with the marker where its last words are."""
    marked = _dumped(answer)
    if "tool_calls" in marked:
        *others, last = marked["tool_calls"]
        function = {**last["function"], "arguments": {MARKER: MARKER}}
        return {**marked, "tool_calls": [*others, {**last, "function": function}]}
    return {**marked, "content": MARKER}


def _shows(completion: str, answer: Message) -> bool:
    """Whether a rendered answer has all that was given, white space aside."""
    names = [call.function.name for call in answer.tool_calls or ()]
    wanted = [*answer.texts, answer.reasoning or "", *names]
    shown = _squeezed(completion)
    return all(_squeezed(text) in shown for text in wanted)


def _squeezed(text: str) -> str:
    return "".join(text.split())


def _verbatim(answer: Message, prompt: str, before: str) -> str:
    """The answer as it was given, where the template would show another one than the model is to write.

    Templates of reasoning models cut the thinking off, or open it in the prompt.

    Args:
        before: what the template shows before an answer.
    """
    if answer.tool_calls:
        raise DataError("the chat template does not show all of the assistant's text and tool calls")
    text = "\n".join(answer.texts)
    if before.startswith(prompt):
        if answer.reasoning:
            raise DataError("the chat template does not show the reasoning of the answer; leave it out")
        return before[len(prompt) :] + text
    if not prompt.startswith(before):
        raise DataError(
            "the chat template renders the prompt differently once the answer follows; expected the prompt to stay as "
            "it is"
        )
    return _behind(prompt[len(before) :], text, answer.reasoning)


def _behind(opening: str, text: str, reasoning: str | None) -> str:
    """An answer behind a prompt that opens it, such as with `<think>`."""
    tag = OPEN_TAG.search(opening)
    if tag is None:
        if reasoning:
            raise DataError("the chat template does not show the reasoning of the answer; leave it out")
        return text
    opened = tag.group().strip()
    closed = f"{tag[1]}/{tag[2]}{tag[3]}"
    if text.lstrip().startswith(opened):
        text = text.lstrip().removeprefix(opened).lstrip("\n")
    if closed not in text and reasoning:
        text = f"{reasoning.strip()}\n{closed}\n\n{text}"
    if closed not in text:
        raise DataError(
            f"the prompt ends in {opened!r}, but the answer never comes to '{closed}': expected the thinking, "
            f"'{closed}' and then the answer, as 'content' or with the thinking as 'reasoning_content'; no thinking is "
            f"'{closed}' and then the answer"
        )
    return text
