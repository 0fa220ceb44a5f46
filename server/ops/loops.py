"""Requests that come back: this server sent them to an upstream, and they end up here again.

In: `app.state.softspec_upstreams`, which has this server's id, and the header with the ids of all servers that sent a
request on. Out: 508 to a request that was here before, or that was sent on too often.
"""

from http import HTTPStatus

from fastapi.responses import JSONResponse
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from softspec.server.upstream.request import servers_before
from softspec.server.upstream.upstreams import Upstreams

MOST_SERVERS = 4
"""How many softspec servers may stand in a row; a loop over more replicas than that ends here too."""


class RefuseLoops:
    """ASGI middleware: what this server sent on is not taken again."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] == "http" and scope["method"] == "POST" and _is_loop(scope):
            await _refusal()(scope, receive, send)
        else:
            await self._app(scope, receive, send)


def _is_loop(scope: Scope) -> bool:
    upstreams: Upstreams | None = getattr(scope["app"].state, "softspec_upstreams", None)
    if upstreams is None:
        return False
    before = servers_before(Headers(scope=scope))
    return upstreams.server_id in before or len(before) >= MOST_SERVERS


def _refusal() -> JSONResponse:
    code = HTTPStatus.LOOP_DETECTED.value
    message = (
        "this request was routed here by a softspec server that was to send it elsewhere: one of its upstreams leads "
        "back to it; change that upstream's url"
    )
    return JSONResponse(
        {"error": {"message": message, "type": "LoopDetectedError", "param": None, "code": code}}, code
    )
