"""A server that stops: it takes no new requests from the first moment, and waits only so long for those that it has.

In: `app.state.softspec_ending`, which knows when the engine is told to stop. Out: 503 to whoever comes later, and, to
the thread that stops the engine, when the last request was answered.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from typing import Protocol

from fastapi.responses import JSONResponse
from starlette.datastructures import State
from starlette.types import ASGIApp, Receive, Scope, Send

STOPPING = "the server is shutting down"
FAREWELL_S = 5
"""How long a client may take to read the end of its answer once the engine is gone; uvicorn waits without limit."""


class Ending(Protocol):
    """The end of the engine behind the server."""

    @property
    def begun(self) -> bool: ...


class Unanswered:
    """How many requests are being answered; another thread may wait until there are none."""

    def __init__(self) -> None:
        self._count = 0
        self._given_up = False
        self._none = threading.Event()
        self._none.set()

    @contextmanager
    def one(self) -> Iterator[None]:
        """One more, until the block ends; of one thread only."""
        self._count += 1
        self._none.clear()
        try:
            yield
        finally:
            self._count -= 1
            if not self._count:
                self._none.set()

    def wait(self, seconds: float) -> bool:
        """Wait until there are none, at most so long; says whether all were answered."""
        return not self._given_up and self._none.wait(seconds) and not self._given_up

    def give_up(self) -> None:
        """Let nobody wait any longer."""
        self._given_up = True
        self._none.set()


class RefuseWhileStopping:
    """ASGI middleware: what comes when the end has begun is a 503, but for whoever only looks at the server."""

    def __init__(self, app: ASGIApp, unanswered: Unanswered) -> None:
        self._app = app
        self._unanswered = unanswered

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] != "http" or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        # Counted before it is looked whether the end has begun, which is set before anybody waits for the last one.
        with self._unanswered.one():
            answer = _refusal() if _is_stopping(scope["app"].state) else self._app
            await answer(scope, receive, send)


def limit_farewell(state: State) -> None:
    """Let the HTTP server end although a client does not read on."""
    if (server := getattr(state, "server", None)) is not None:
        server.config.timeout_graceful_shutdown = FAREWELL_S


def _is_stopping(state: State) -> bool:
    ending: Ending | None = getattr(state, "softspec_ending", None)
    return ending is not None and ending.begun


def _refusal() -> JSONResponse:
    code = HTTPStatus.SERVICE_UNAVAILABLE.value
    message = f"{STOPPING}: send the request to another one, or again when it is back"
    error = {"message": message, "type": "ServiceUnavailableError", "param": None, "code": code}
    return JSONResponse({"error": error}, code, {"Retry-After": "1", "Connection": "close"})
