"""The gate before every route, vLLM's own included: who asks is found out, and what they may not is refused.

In: any HTTP request or WebSocket. Out: the same, or an error before anything was spent. What passes is not touched:
streams stay streams. Knows ASGI; how an error looks at a path is told by its caller.
"""

from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from softspec.engine.meter import Meter
from softspec.errors import AuthenticationError, SoftspecError
from softspec.server.access.access import STATE, Access
from softspec.server.access.body import read_body, replay, too_large
from softspec.server.access.budget import Budget
from softspec.server.access.callers import Caller, current_caller, require_place
from softspec.server.access.places import Place, place_of
from softspec.server.access.request_limits import require_small_body
from softspec.server.access.second_port import require_served
from softspec.server.access.settings import RequestLimits
from softspec.server.observe.account import current_account

Respond = Callable[[str, SoftspecError], Response]
"""The answer that an error becomes at a path."""
_POLICY_VIOLATION = 1008
"""Why a WebSocket is closed (RFC 6455)."""
_ANTHROPIC = "/v1/messages"
"""Begins the paths whose clients send their key in `x-api-key`."""


class Gate:
    """ASGI middleware; what it goes by lies in the app's state, and without that it lets everything pass."""

    def __init__(self, app: ASGIApp, respond: Respond) -> None:
        self._app = app
        self._respond = respond

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request pass, or answer it with its error."""
        access = _access_of(scope)
        if access is None:
            await self._app(scope, receive, send)
            return
        place = place_of(scope, scope["app"].router.routes)
        async with AsyncExitStack() as visit:
            visit.callback(current_caller.reset, current_caller.set(None))
            headers: dict[str, str] = {}
            try:
                require_served(place, scope, access.settings.ops_port)
                if (caller := _caller_of(access, place, scope)) is not None:
                    headers |= await _let_in(caller, access.budget, place, visit)
                    require_place(caller, place)
                if place.asks:
                    access.require_short_wait()
                reading = await _read(access.settings.limits, scope, receive)
            except SoftspecError as error:
                await self._refuse(place, error, scope, receive, _telling(headers, send))
                return
            if reading is not None:  # else the client went away
                if place.asks and (account := current_account.get()) is not None:
                    visit.enter_context(access.queue.waiting(account.meter))
                await self._app(scope, reading, _telling(headers, send))

    async def _refuse(
        self, place: Place, error: SoftspecError, scope: Scope, receive: Receive, send: Send
    ) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": _POLICY_VIOLATION})
        else:
            await self._respond(place.path or scope["path"], error)(scope, receive, send)


async def _let_in(caller: Caller, budget: Budget, place: Place, visit: AsyncExitStack) -> dict[str, str]:
    """Note who asks, until the visit is over, and count it; the headers of its answer.

    Raises:
        RateLimitError: the key may not ask now.
    """
    current_caller.set(caller)
    account = current_account.get()
    if account is not None:
        account.key = caller.name
    headers = await budget.begin(caller, place.asks)
    visit.enter_context(budget.running(caller))
    if account is not None:
        visit.push_async_callback(_pay, budget, caller, account.meter)
    return headers


async def _pay(budget: Budget, caller: Caller, meter: Meter) -> None:
    await budget.spend(caller, meter.prompt_tokens + meter.completion_tokens)


def _telling(headers: Mapping[str, str], send: Send) -> Send:
    """Send with these headers."""
    if not headers:
        return send

    async def send_with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            MutableHeaders(scope=message).update(headers)
        await send(message)

    return send_with_headers


def _access_of(scope: Scope) -> Access | None:
    """What to go by; None for what nobody is asked about, such as a browser's question whether it may ask."""
    if scope["type"] not in ("http", "websocket") or scope.get("method") == "OPTIONS":
        return None
    access: Access | None = getattr(scope["app"].state, STATE, None)
    return access


def _caller_of(access: Access, place: Place, scope: Scope) -> Caller | None:
    """Who asks; None where everybody may."""
    if access.ring is None or place.is_open or (place.is_ops and not access.settings.protect_ops):
        return None
    presented = _presented(place, Headers(scope=scope))
    if presented is None:
        raise AuthenticationError(
            "no API key: send one as 'Authorization: Bearer KEY' (Anthropic's clients: as 'x-api-key')"
        )
    found = access.ring.find(presented)
    if found is None:
        raise AuthenticationError("the API key is not known here: ask whoever runs this server for one")
    return Caller(*found)


def _presented(place: Place, headers: Headers) -> str | None:
    """The key that a request brings, if any."""
    scheme, _, key = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and key.strip():
        return key.strip()
    return headers.get("x-api-key") if (place.path or "").startswith(_ANTHROPIC) else None


async def _read(limits: RequestLimits, scope: Scope, receive: Receive) -> Receive | None:
    """What the app receives in its turn, once the body was read where there may be one; None if the client went away.

    Raises:
        TooLargeError: the body has more bytes than it may, or says so; the rest is not read.
        FieldError: its fields ask for too much.
    """
    if scope["type"] != "http" or scope["method"] in ("GET", "HEAD"):
        return receive
    told = Headers(scope=scope).get("content-length", "")
    if told.isdecimal() and int(told) > limits.max_body_bytes:
        raise too_large(limits.max_body_bytes)
    body = await read_body(receive, limits.max_body_bytes)
    if body is None:
        return None
    require_small_body(limits, body)
    return replay(body, receive)
