"""An OpenAI-compatible server that does what a script says, on a real socket: answers, faults, silence.

In: scripts, one for each request in turn; the last goes on for all that follow. Out: a URL, the requests as they came,
and when their clients went away. Runs in a thread of its own, so clients may be of any kind.
"""

import asyncio
import json
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

Json = dict[str, Any]
CHAT = "/chat/completions"
TEXT = "/completions"
USAGE = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}


@dataclass
class Request:
    """One request, and its connection; `left_at` is when the client went away while the script still ran."""

    method: str
    path: str
    headers: dict[str, str]
    raw: bytes
    writer: asyncio.StreamWriter
    at: float
    left_at: float | None = None

    @property
    def body(self) -> Json:
        return dict(json.loads(self.raw))

    async def send(self, *parts: bytes) -> None:
        for part in parts:
            self.writer.write(part)
            await self.writer.drain()


Script = Callable[[Request], Awaitable[bool]]
"""Serves one request; returns whether the connection may serve another."""


@dataclass
class ScriptedUpstream:
    """A context manager; `connections` counts those that are open now."""

    scripts: Sequence[Script]
    host: str = "127.0.0.1"
    requests: list[Request] = field(default_factory=list)
    connections: int = 0
    accepted: int = 0
    port: int = 0

    @property
    def url(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}/v1"

    def __enter__(self) -> "ScriptedUpstream":
        self._loop = asyncio.new_event_loop()
        ready = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(ready,), daemon=True)
        self._thread.start()
        assert ready.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stopped.set)
        self._thread.join(10)
        assert not self._thread.is_alive()

    def until(self, condition: Callable[[], bool], seconds: float = 1.0) -> bool:
        """Whether something becomes true within so many seconds."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if condition():
                return True
            time.sleep(0.005)
        return condition()

    def _run(self, ready: threading.Event) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._serve(ready))

    async def _serve(self, ready: threading.Event) -> None:
        self._stopped = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        server = await asyncio.start_server(self._connected, self.host, 0)
        self.port = server.sockets[0].getsockname()[1]
        ready.set()
        await self._stopped.wait()
        server.close()
        for task in [*self._tasks]:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        self.accepted += 1
        try:
            while (request := await self._read(reader, writer)) and await self._play(request, reader):
                pass
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            self.connections -= 1
            self._tasks.discard(task)
            writer.close()

    async def _read(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Request | None:
        head = await reader.readexactly(1)
        if not head.isalpha():  # no HTTP: the beginning of TLS, say
            writer.write(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n")
            return None
        head += await reader.readuntil(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        method, path, _ = first.split(" ")
        pairs = (line.partition(":") for line in lines if line)
        headers = {name.strip().lower(): value.strip() for name, _, value in pairs}
        raw = await reader.readexactly(int(headers.get("content-length", "0")))
        request = Request(method, path, headers, raw, writer, time.monotonic())
        self.requests.append(request)
        return request

    async def _play(self, request: Request, reader: asyncio.StreamReader) -> bool:
        """Run the script until it ends or the client goes away."""
        script = self.scripts[min(len(self.requests), len(self.scripts)) - 1]
        playing = asyncio.ensure_future(script(request))
        leaving = asyncio.ensure_future(reader.read(1))
        try:
            await asyncio.wait((playing, leaving), return_when=asyncio.FIRST_COMPLETED)
            if leaving.done() and not playing.done():
                request.left_at = time.monotonic()
                return False
            return await playing
        finally:
            for task in (playing, leaving):
                task.cancel()
            await asyncio.gather(playing, leaving, return_exceptions=True)


# Scripts


def response(
    body: bytes, status: int = 200, kind: str = "application/json", headers: dict[str, str] | None = None
) -> bytes:
    """A whole HTTP response."""
    given = {"content-type": kind, "content-length": str(len(body)), **(headers or {})}
    lines = "".join(f"{name}: {value}\r\n" for name, value in given.items())
    return f"HTTP/1.1 {status} Scripted\r\n{lines}\r\n".encode() + body


def answer(
    document: Any, status: int = 200, headers: dict[str, str] | None = None, kind: str = "application/json"
) -> Script:
    """A whole answer; bytes go as they are."""
    body = document if isinstance(document, bytes) else json.dumps(document).encode()
    return raw(response(body, status, kind, headers), keep=True)


def error(status: int, message: str = "no", headers: dict[str, str] | None = None) -> Script:
    """An error in OpenAI's envelope."""
    return answer(
        {"error": {"message": message, "type": "e", "param": None, "code": status}}, status, headers
    )


def raw(*parts: bytes, pause_s: float = 0, keep: bool = False) -> Script:
    """Bytes as they are, each part by itself; then the connection is closed, or kept."""

    async def play(request: Request) -> bool:
        for part in parts:
            await request.send(part)
            await asyncio.sleep(pause_s)
        return keep

    return play


def events(
    *parts: bytes, pause_s: float = 0, kind: str = "text/event-stream", complete: bool = True
) -> Script:
    """A streamed body in HTTP chunks, cut where the parts are cut; an incomplete one just stops."""
    head = f"HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\ntransfer-encoding: chunked\r\n\r\n".encode()

    async def play(request: Request) -> bool:
        await request.send(head)
        for part in parts:
            await request.send(f"{len(part):x}\r\n".encode() + part + b"\r\n")
            await asyncio.sleep(pause_s)
        if complete:
            await request.send(b"0\r\n\r\n")
        return complete

    return play


def hang(*parts: bytes) -> Script:
    """Send these bytes, then nothing."""

    async def play(request: Request) -> bool:
        await request.send(*parts)
        await asyncio.sleep(3600)
        return False

    return play


def event(document: Any) -> bytes:
    """One server-sent event."""
    text = document if isinstance(document, str) else json.dumps(document)
    return f"data: {text}\n\n".encode()


DONE = b"data: [DONE]\n\n"


# What a model would say


def chat_answer(text: str = "Yes.", **more: Any) -> Json:
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "finish_reason": "stop", "logprobs": None}
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "big-1",
        "choices": [choice],
        "usage": USAGE,
        **more,
    }


def chat_chunk(text: str | None, finish: str | None = None, **more: Any) -> Json:
    delta = {} if text is None else {"content": text}
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "big-1",
        "choices": [choice],
        **more,
    }


def chat_stream(*texts: str, pause_s: float = 0) -> Script:
    """A stream of these texts, with its usage at the end."""
    chunks = [chat_chunk(text) for text in texts] + [chat_chunk(None, "stop")]
    usage = {**chat_chunk(None), "choices": [], "usage": USAGE}
    return events(*(event(chunk) for chunk in (*chunks, usage)), DONE, pause_s=pause_s)
