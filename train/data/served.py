"""Turns and tools as vLLM's chat route gives them to a chat template.

In: checked turns. Out: dictionaries with the keys, in the order and the shape that a request's have by then.
"""

from collections.abc import Mapping
from typing import Any

from softspec.train.data.content_format import takes_parts
from softspec.train.data.messages import TEXT_PARTS, Message, Tool, ToolCall


def dumped(turn: Message) -> dict[str, Any]:
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


def with_all_keys(turn: Message) -> dict[str, Any]:
    """A turn with all keys of its row, also those that no request brings to a template."""
    return (turn.model_extra or {}) | dumped(turn)


def served_tool(tool: Tool) -> dict[str, Any]:
    """A tool as the server passes it on, with null for what is not said of it."""
    function = tool.function.model_dump()
    if function["strict"] is None:
        del function["strict"]
    return {"type": tool.type, "function": function}


def for_template(messages: list[dict[str, Any]], template: str) -> list[dict[str, Any]]:
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
