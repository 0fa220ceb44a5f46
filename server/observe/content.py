"""What a request asked and what it was answered, for the request log of a server that was told to log it.

In: the bodies as they pass. Out: `messages` or `prompt`, and `answer`, on the request's account; each is cut where it
is long. Knows how OpenAI's and Anthropic's answers look, whole and streamed.
"""

import json
from collections.abc import Iterator
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from softspec.server.observe.account import current_account

LONGEST = 65_536
"""Bytes of JSON that stand in a line for one of them."""
_MOST_HEARD = 1_048_576
"""Bytes of a body that are kept meanwhile; a longer one is not read as JSON."""
_CUT = "… (cut)"
_QUESTIONS = ("messages", "prompt", "input")
_ANSWERS = ("answers", "scores")

Json = dict[str, Any]


class Overhear:
    """ASGI middleware that puts the content on the request's account."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on and listen."""
        account = current_account.get()
        if account is None or scope["type"] != "http" or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        asked, said = bytearray(), bytearray()

        async def heard_receive() -> Message:
            message = await receive()
            _add(asked, message)
            return message

        async def heard_send(message: Message) -> None:
            _add(said, message)
            await send(message)

        try:
            await self._app(scope, heard_receive, heard_send)
        finally:
            account.content = {**question_in(bytes(asked)), "answer": cut(answer_in(bytes(said)))}


def _add(heard: bytearray, message: Message) -> None:
    if len(heard) < _MOST_HEARD:
        heard += message.get("body", b"")


def question_in(body: bytes) -> Json:
    """`messages`, or what else a body asks as `prompt`; the whole of it if it cannot be read."""
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError):
        fields = None
    if not isinstance(fields, dict):
        return {"prompt": cut(body.decode("utf-8", "replace"))}
    name = next((name for name in _QUESTIONS if name in fields), None)
    return {"messages" if name == "messages" else "prompt": cut(fields[name] if name else None)}


def answer_in(body: bytes) -> Any:
    """The text of an answer, those of its choices if it has several, or its answers to questions."""
    texts: dict[int, str] = {}
    for document in _documents(body):
        if whole := next((document[name] for name in _ANSWERS if name in document), None):
            return whole
        for index, text in _texts(document):
            texts[index] = texts.get(index, "") + text
    said = [texts[index] for index in sorted(texts)]
    return said if len(said) > 1 else "".join(said) if said else None


def cut(value: Any) -> Any:
    """The value, or the beginning of its JSON if that is too long for a line."""
    text = json.dumps(value, ensure_ascii=False)
    encoded = text.encode("utf-8", "backslashreplace")
    return value if len(encoded) <= LONGEST else encoded[:LONGEST].decode("utf-8", "ignore") + _CUT


def _documents(body: bytes) -> Iterator[Json]:
    """A whole answer, or the events of a streamed one."""
    text = body.decode("utf-8", "replace")
    lines = (line.partition("data:")[2] for line in text.split("\n") if line.startswith("data:"))
    for part in [text] if text.startswith("{") else lines:
        try:
            document = json.loads(part)
        except (ValueError, RecursionError):
            continue
        if isinstance(document, dict):
            yield document


def _texts(document: Json) -> Iterator[tuple[int, str]]:
    """The pieces of text in an answer or in one event, each with its choice."""
    for choice in document.get("choices") or ():
        said = choice.get("message") or choice.get("delta") or choice
        yield choice.get("index", 0), _said(said)
    if document.get("object") == "response":
        for item in document.get("output") or ():
            yield 0, "".join(map(_said, item.get("content") or ())) or item.get("arguments") or ""
    elif isinstance(document.get("content"), list):
        yield 0, "".join(map(_said, document["content"]))
    elif isinstance(delta := document.get("delta"), str):
        yield 0, delta
    elif isinstance(delta, dict):
        yield 0, _said(delta)


def _said(part: Json) -> str:
    """The text of a message, of a part of one, or of a piece of either; a tool call is its arguments."""
    names = ("content", "text", "refusal", "partial_json")
    texts = [part[name] for name in names if isinstance(part.get(name), str)]
    calls = [(call.get("function") or {}).get("arguments") or "" for call in part.get("tool_calls") or ()]
    return "".join((*texts, *calls))
