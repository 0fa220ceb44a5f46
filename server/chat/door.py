"""The door before vLLM's own routes: what they would ignore is refused, and what they would guess is settled.

In: a request to any route but those that answer with the `uncertainty` field. Out: the same request, or a 400. It names
the model where the caller named none, refuses the field, and refuses an ensemble where the server's policy would not be
followed. Knows ASGI, and of a route only its path and the fields of its body.
"""

import json
from collections.abc import Collection
from typing import Any, get_args

from fastapi.routing import APIRoute
from starlette.datastructures import MutableHeaders
from starlette.routing import Match
from starlette.types import ASGIApp, Receive, Scope, Send

from softspec.errors import FieldError, SoftspecError
from softspec.server.access.body import read_body, replay
from softspec.server.chat.guard import refuse_unfollowed
from softspec.server.chat.service import Service
from softspec.server.chat.wire import EXTENSION, Json
from softspec.server.ops.errors import error_response

_BY_HEADER = {"/invocations": "x-amzn-sagemaker-adapter-identifier"}
"""Routes that take the model's name from a header, and write it over the body's even where there is none."""
_READ_ONLY = ("/tokenize", "/detokenize", "/count_tokens", "/render", "/derender")
"""Ends of paths that take a model's name and let it say nothing."""


class Door:
    """Middleware; `followers` are the paths whose routes read the field and follow the policy themselves."""

    def __init__(self, app: ASGIApp, followers: Collection[str]) -> None:
        self._app = app
        self._followers = followers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request pass, changed if need be, or answer it with its error."""
        route = _route_of(scope)
        if route is None or route.path in self._followers:
            await self._app(scope, receive, send)
            return
        body = await read_body(receive)
        if body is None:  # the client went away
            return
        try:
            body = _checked(scope, route, body)
        except SoftspecError as error:
            await error_response(error)(scope, receive, send)
            return
        await self._app(scope, replay(body, receive), send)


def _route_of(scope: Scope) -> APIRoute | None:
    """The route that a POST request will be given to."""
    if scope["type"] != "http" or scope["method"] != "POST":
        return None
    routes = (route for route in scope["app"].router.routes if route.matches(scope)[0] == Match.FULL)
    found = next(routes, None)
    return found if isinstance(found, APIRoute) else None


def _checked(scope: Scope, route: APIRoute, body: bytes) -> bytes:
    """The body to hand on.

    Raises:
        UserError: the route would ignore what the caller or the operator wants.
    """
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError):
        return body  # the route says what is wrong with it
    if not isinstance(fields, dict):
        return body
    if fields.get(EXTENSION) is not None:
        raise FieldError(
            EXTENSION,
            f"'{EXTENSION}' is not known at {route.path}: ask at /v1/chat/completions or /v1/completions, or remove it",
        )
    return _naming_the_model(scope, route, fields, body) if _asks_a_model(route) else body


def _naming_the_model(scope: Scope, route: APIRoute, fields: Json, body: bytes) -> bytes:
    service: Service = scope["app"].state.softspec_chat
    headers = MutableHeaders(scope=scope)
    header = _BY_HEADER.get(route.path)
    asked = (header and headers.get(header)) or fields.get("model")
    model = service.model_named(asked, fields)
    if model in service.ensembles and not route.path.endswith(_READ_ONLY):
        refuse_unfollowed(service.rules.default, model, route.path)
    if header:
        headers[header] = model
    if model == fields.get("model"):
        return body
    body = json.dumps({**fields, "model": model}).encode()
    headers["content-length"] = str(len(body))
    return body


def _asks_a_model(route: APIRoute) -> bool:
    """Whether the body of a route's requests has a place for a model's name."""
    if route.path in _BY_HEADER:
        return True
    annotation: Any = route.body_field.field_info.annotation if route.body_field else None
    return any("model" in getattr(kind, "model_fields", {}) for kind in (annotation, *get_args(annotation)))
