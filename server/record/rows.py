"""What of a request is kept: a row that training reads as it is, where there is an answer to learn, and else the rest.

In: the caller's body, the numbers of the withheld answer, and the upstream's choice if there is one. Out: a row, and
whether training can learn it. Knows no files and no HTTP; the rows of training only by their shape.
"""

import json
from dataclasses import dataclass
from typing import Any

Json = dict[str, Any]
_KEPT = ("tools", "chat_template_kwargs")
"""What of a request shapes the prompt beside its messages, and has the same name in a row."""
_TEXT_PARTS = ("text", "input_text", "output_text", "refusal", "thinking")
_WHOLE = ("stop", "tool_calls", "function_call")
"""Ends of answers that were finished, and neither cut off nor filtered."""


@dataclass(frozen=True)
class Row:
    """One request that was not answered by the ensemble; `is_learnable` when training reads `content` as it is."""

    content: Json
    is_learnable: bool


def row_of(request: Json, about: Json, answer: Json | None) -> Row:
    """The row of one choice.

    Args:
        request: the caller's body for this choice alone.
        about: what is kept beside the text: the model, the numbers, the time.
        answer: the upstream's choice, with a `message` or a `text`; None when the ensemble abstained.
    """
    asked = _chat(request, answer) if "messages" in request else _text(request, answer)
    if answer is not None:
        about = {**about, "finish_reason": answer.get("finish_reason")}
    return Row({**asked, **about}, answer is not None and _can_be_learnt(asked, request, answer))


def _chat(request: Json, answer: Json | None) -> Json:
    messages = list(request["messages"])
    if answer is not None:
        messages.append(_turn(answer["message"]))
    return {"messages": messages} | {key: request[key] for key in _KEPT if request.get(key)}


def _turn(message: Json) -> Json:
    """The upstream's turn with what a template shows; its thoughts are another model's, and are left out."""
    turn = {"role": "assistant", "content": message.get("content")}
    if calls := message.get("tool_calls"):
        turn["tool_calls"] = [_call(call) for call in calls]
    elif turn["content"] is None and message.get("refusal"):
        turn["refusal"] = message["refusal"]
    return turn


def _call(call: Json) -> Json:
    function = call.get("function") or {}
    named = {"name": function.get("name"), "arguments": function.get("arguments")}
    return {"id": call.get("id"), "type": call.get("type") or "function", "function": named}


def _text(request: Json, answer: Json | None) -> Json:
    prompt = request.get("prompt")
    if answer is None:
        return {"prompt": prompt}
    completion = answer["text"]
    if request.get("echo") and isinstance(prompt, str):
        completion = completion.removeprefix(prompt)
    return {"prompt": prompt, "completion": completion}


def _can_be_learnt(asked: Json, request: Json, answer: Json) -> bool:
    """Whether training can read the row, and what it would learn is the answer and not a piece of it."""
    if answer.get("finish_reason") not in _WHOLE or not _is_utf8(asked):
        return False
    if "messages" not in asked:
        is_text = isinstance(asked["prompt"], str) and not request.get("suffix")
        return is_text and bool(asked["completion"].strip())
    if request.get("continue_final_message") or any(
        tool.get("type") != "function" for tool in asked.get("tools", ())
    ):
        return False
    return all(map(_is_text_turn, asked["messages"])) and _says_something(asked["messages"][-1])


def _is_text_turn(turn: Json) -> bool:
    content = turn.get("content")
    if turn.get("function_call") is not None:
        return False
    if content is None:
        return turn.get("role") == "assistant" and bool(turn.get("tool_calls"))
    parts = content if isinstance(content, list) else [content]
    return all(
        isinstance(part, str) or (isinstance(part, dict) and part.get("type") in _TEXT_PARTS)
        for part in parts
    )


def _says_something(turn: Json) -> bool:
    calls = turn.get("tool_calls") or ()
    return bool(calls or (turn["content"] or "").strip()) and all(map(_is_whole_call, calls))


def _is_whole_call(call: Json) -> bool:
    try:
        arguments = json.loads(call["function"]["arguments"] or "{}")
    except (TypeError, ValueError, RecursionError):
        return False
    return (
        isinstance(arguments, dict)
        and isinstance(call["function"]["name"], str)
        and call["type"] == "function"
    )


def _is_utf8(asked: Json) -> bool:
    """Whether no text has half of a character, which no file of text can hold."""
    try:
        json.dumps(asked, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True
