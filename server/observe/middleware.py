"""The outermost layer of the server: every request gets an id and an account, and observers hear how it ended.

In: any HTTP request. Out: the same request, whose answer has `x-request-id`. Streams stay streams.
"""

import time
import uuid
from collections.abc import Callable, Sequence

from starlette.applications import Starlette
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from softspec.engine.meter import current_meter
from softspec.server.observe.account import Account, current_account

REQUEST_ID = "x-request-id"
Observer = Callable[[Account], None]
CLIENT_WENT_AWAY = 499
"""The status of a request whose client left before its answer began, as nginx writes it."""


def observe_with(app: Starlette, observers: Sequence[Observer]) -> None:
    """Put `Observe` around the app, outside of every middleware that is or will be added to it."""
    build = app.build_middleware_stack
    setattr(app, "build_middleware_stack", lambda: Observe(build(), observers))  # noqa: B010


class Observe:
    """ASGI middleware around everything else; `observers` are read for every request and called when it has ended."""

    def __init__(self, app: ASGIApp, observers: Sequence[Observer]) -> None:
        self._app = app
        self._observers = observers

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
            await self._app(scope, receive, send_with_id)
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
    request_id = MutableHeaders(scope=scope).setdefault(REQUEST_ID, uuid.uuid4().hex)
    return Account(request_id, scope["method"], scope["path"])
