"""The outermost layer of the server: every request gets an id and an account, and observers hear how it ended.

In: any HTTP request. Out: the same request, whose answer has `x-request-id`. Streams stay streams.
"""

import time
import uuid
from collections.abc import Callable, Sequence
from functools import cached_property

from starlette.applications import Starlette
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from softspec.engine.meter import current_meter
from softspec.server.observe.account import CLIENT_WENT_AWAY, Account, current_account
from softspec.server.observe.tracing import trace_id_of

REQUEST_ID = "x-request-id"
Observer = Callable[[Account], None]
Layer = Callable[[ASGIApp], ASGIApp]


def observe_with(app: Starlette, observers: Sequence[Observer], layers: Sequence[Layer] = ()) -> None:
    """Put `Observe` around the app, outside of every middleware that is or will be added to it."""
    build = app.build_middleware_stack
    setattr(app, "build_middleware_stack", lambda: Observe(build(), observers, layers))  # noqa: B010


class Observe:
    """ASGI middleware around everything else; `observers` are read for every request and called when it has ended.

    `layers` are ASGI middleware between it and the app, the innermost first, which find an account; they are read with
    the first request, as they are known only when the engine runs.
    """

    def __init__(self, app: ASGIApp, observers: Sequence[Observer], layers: Sequence[Layer] = ()) -> None:
        self._app = app
        self._observers = observers
        self._layers = layers

    @cached_property
    def _observed(self) -> ASGIApp:
        app = self._app
        for layer in self._layers:
            app = layer(app)
        return app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on with an account that is current while it is answered."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        account = _account_of(scope)

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                account.status = message["status"]
                MutableHeaders(scope=message).setdefault(REQUEST_ID, account.request_id)
            await send(message)

        tokens = current_account.set(account), current_meter.set(account.meter)
        try:
            await self._observed(scope, receive, send_with_id)
        finally:
            current_account.reset(tokens[0])
            current_meter.reset(tokens[1])
            account.ended_at = time.monotonic()
            account.route = getattr(scope.get("route"), "path", None)
            account.status = account.status or CLIENT_WENT_AWAY
            for observe in self._observers:
                observe(account)


def _account_of(scope: Scope) -> Account:
    """A new account; the id is the caller's, and travels on so that vLLM calls the request by it."""
    headers = MutableHeaders(scope=scope)
    request_id = headers.setdefault(REQUEST_ID, uuid.uuid4().hex)
    return Account(request_id, scope["method"], scope["path"], trace_id_of(headers))
