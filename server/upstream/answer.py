"""What an upstream answers, read and checked: whoever passes it on can rely on its shape.

In: text. Out: JSON objects whose `choices` and `usage` are what OpenAI's are, or a Fault. Knows no connection.
"""

import json
import math
from collections.abc import Callable
from typing import Any

from softspec.server.upstream.faults import Fault, fault_in
from softspec.server.upstream.request import Json

COUNTS = ("prompt_tokens", "completion_tokens", "total_tokens")
Check = Callable[[Json], str | None]


def read_answer(path: str, text: str) -> Json:
    """A whole answer.

    Raises:
        Fault: it is not one, or it is an error.
    """
    document = _read(text, has_begun=False)
    check = _wrong_message if _is_chat(path) else _wrong_text
    choices = document.get("choices")
    if choices == []:
        raise _malformed("'choices' is empty")
    return _checked(document, check)


def read_chunk(path: str, text: str, has_begun: bool) -> Json:
    """A part of a streamed answer.

    Raises:
        Fault: it is not one, or it is an error.
    """
    document = _read(text, has_begun)
    return _checked(document, _nothing_more if _is_chat(path) else _wrong_text)


def _read(text: str, has_begun: bool) -> Json:
    try:
        document = json.loads(text, parse_constant=_no_number, parse_float=_finite)
        if "\\ud" in text or "\\uD" in text:
            document = _with_whole_characters(document)
    except (ValueError, RecursionError):
        raise _malformed("it is not JSON") from None
    if not isinstance(document, dict):
        raise _malformed("it is not a JSON object")
    if fault := fault_in(document, has_begun):
        raise fault
    return document


def _checked(document: Json, wrong_message: Check) -> Json:
    choices, usage = document.get("choices"), document.get("usage")
    if not isinstance(choices, list):
        raise _malformed("'choices' is not a list")
    for choice in choices:
        if problem := _wrong_choice(choice, wrong_message):
            raise _malformed(problem)
    if usage is not None and not (
        isinstance(usage, dict) and all(_is_count(usage.get(name, 0)) for name in COUNTS)
    ):
        raise _malformed("'usage' does not hold numbers of tokens")
    return document


def _wrong_choice(choice: object, wrong_message: Check) -> str | None:
    if not isinstance(choice, dict):
        return "a choice is not an object"
    if not _is_index(choice.get("index", 0)):
        return "'index' of a choice is not a number"
    if not isinstance(choice.get("finish_reason"), str | None):
        return "'finish_reason' of a choice is not text"
    return _wrong_delta(choice) or wrong_message(choice)


def _wrong_message(choice: Json) -> str | None:
    message = choice.get("message")
    return _wrong_content(message) if isinstance(message, dict) else "a choice has no 'message'"


def _wrong_delta(choice: Json) -> str | None:
    delta = choice.get("delta")
    if delta is None:
        return None
    return _wrong_content(delta) if isinstance(delta, dict) else "'delta' of a choice is not an object"


def _wrong_content(message: Json) -> str | None:
    if not isinstance(message.get("content"), str | None):
        return "'content' of a choice is not text"
    calls = message.get("tool_calls")
    if calls is not None and not (isinstance(calls, list) and all(map(_is_call, calls))):
        return "'tool_calls' of a choice is not a list of calls"
    return None


def _nothing_more(_choice: Json) -> None:
    """A chunk of a chat needs no message: its delta, if it has one, was checked."""


def _wrong_text(choice: Json) -> str | None:
    return None if isinstance(choice.get("text"), str) else "'text' of a choice is not text"


def _is_chat(path: str) -> bool:
    return path.endswith("/chat/completions")


def _is_call(call: object) -> bool:
    """A tool call, or a part of one."""
    if not isinstance(call, dict) or not _is_index(call.get("index", 0)):
        return False
    function = call.get("function")
    return function is None or (
        isinstance(function, dict) and all(isinstance(text, str | None) for text in function.values())
    )


def _is_index(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_count(value: object) -> bool:
    return value is None or _is_index(value)


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is no number in JSON")


def _finite(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError("a number is too large")
    return value


def _with_whole_characters(document: Any) -> Any:
    """The document with U+FFFD for halves of characters, which cannot be sent on in UTF-8."""
    text = json.dumps(document, ensure_ascii=False)
    return json.loads(text.encode("utf-16", "surrogatepass").decode("utf-16", "replace"))


def _malformed(problem: str) -> Fault:
    return Fault("malformed", f"sent an answer that cannot be used: {problem}")
