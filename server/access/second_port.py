"""A port of their own for metrics, docs and probes, beside the one at which callers ask.

In: the app, whose state says at which port. Out: a second HTTP server over the same app, from its start to its end. At
which port a request came is told to the gate by a mark in its scope. Knows uvicorn.
"""

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Generator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.types import ASGIApp, Receive, Scope, Send

from softspec.errors import AbsentError, ConfigError
from softspec.server.access.access import STATE, Access
from softspec.server.access.places import Place

_MARK = "softspec.second_port"
_FAREWELL_S = 1
"""How long a scrape may go on when the server ends."""


def serve_beside(app: Starlette) -> None:
    """Serve the app at a second port too, if its state says so by the time that it starts."""
    of_app = app.router.lifespan_context

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[Any]:
        async with of_app(app) as state:
            access: Access | None = getattr(app.state, STATE, None)
            if access is None or access.settings.ops_port is None:
                yield state
                return
            async with _serving(app, access.host, access.settings.ops_port):
                yield state

    app.router.lifespan_context = lifespan


def require_served(place: Place, scope: Scope, ops_port: int | None) -> None:
    """Raise unless a route is served at the port at which a request came.

    Raises:
        AbsentError: it is not.
    """
    if ops_port is None:
        return
    is_here = place.is_ops or place.is_probe if _MARK in scope else not place.is_ops
    if not is_here:
        other = "that of the models" if _MARK in scope else "that of --ops-port"
        raise AbsentError(f"{scope['path']} is not served at this port: ask {other}")


def require_free(host: str | None, ops_port: int | None, port: int) -> None:
    """Raise unless a server that listens at `port` can listen at its second port too.

    Raises:
        ConfigError: it cannot.
    """
    if ops_port is None:
        return
    if ops_port == port:
        raise ConfigError(f"--ops-port is {port}, where callers ask: give another one")
    _listen(host, ops_port).close()


def _listen(host: str | None, port: int) -> socket.socket:
    family = socket.AF_INET6 if host and ":" in host else socket.AF_INET
    try:
        return socket.create_server((host or "", port), family=family)
    except OSError as error:
        reason = (
            os.strerror(error.errno) if error.errno else str(error)
        )  # Python's own says the address once more
        raise ConfigError(f"--ops-port {port}: cannot listen: {reason}; give another one") from error


@asynccontextmanager
async def _serving(app: ASGIApp, host: str | None, port: int) -> AsyncIterator[None]:
    config = uvicorn.Config(
        _Marked(app),
        lifespan="off",
        ws="none",
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=_FAREWELL_S,
    )
    server = _Beside(config)
    serving = asyncio.create_task(server.serve(sockets=[_listen(host, port)]))
    try:
        yield
    finally:
        server.should_exit = True
        await serving


class _Beside(uvicorn.Server):
    """A server that leaves signals to the one beside it."""

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Capture none."""
        yield


class _Marked:
    """The app, told that a request came at the second port."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app({**scope, _MARK: True}, receive, send)
