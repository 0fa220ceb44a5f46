"""A streamed choice put together again, as it would have come whole.

In: the choices of an upstream's chunks. Out: one choice with a `message` or a `text`.
"""

from typing import Any

from softspec.server.chat.wire import Json

_TEXTS = ("content", "refusal", "reasoning", "reasoning_content")


class Assembly:
    """The parts of one choice so far."""

    def __init__(self) -> None:
        self._text: str | None = None
        self._texts: dict[str, str] = {}
        self._calls: dict[int, Json] = {}
        self._finish_reason: Any = None

    def add(self, choice: Json) -> None:
        """One more part; what is not text where text belongs is left out."""
        self._finish_reason = choice.get("finish_reason") or self._finish_reason
        if isinstance(choice.get("text"), str):
            self._text = (self._text or "") + choice["text"]
        delta = choice.get("delta") or {}
        for name in _TEXTS:
            if isinstance(delta.get(name), str):
                self._texts[name] = self._texts.get(name, "") + delta[name]
        for number, part in enumerate(delta.get("tool_calls") or ()):
            self._add_call(part.get("index", number), part)

    def choice(self) -> Json:
        """All of it."""
        if self._text is not None:
            return {"text": self._text, "finish_reason": self._finish_reason}
        message: Json = {"role": "assistant", "content": None, **self._texts}
        if self._calls:
            message["tool_calls"] = [self._calls[number] for number in sorted(self._calls)]
        return {"message": message, "finish_reason": self._finish_reason}

    def _add_call(self, number: int, part: Json) -> None:
        empty: Json = {"id": None, "type": "function", "function": {"name": "", "arguments": ""}}
        call = self._calls.setdefault(number, empty)
        call["id"] = part.get("id") or call["id"]
        for name, text in (part.get("function") or {}).items():
            if name in call["function"] and isinstance(text, str):
                call["function"][name] += text
