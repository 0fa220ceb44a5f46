"""The route of decisions.

In: `app.state.softspec_chat` for models and policy, `app.state.softspec_decisions` for the engine. Out: `POST
/v1/decisions`. Knows FastAPI.
"""

from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.params import Depends
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute

from softspec.server.chat.leaving import unless_gone
from softspec.server.decisions.request import DecisionRequest, read_request, require_honoured
from softspec.server.decisions.service import PATH, decide
from softspec.server.observe.account import CLIENT_WENT_AWAY


def add_decision_routes(app: FastAPI, checks: Sequence[Depends]) -> None:
    """Add the route; `checks` are made of every body."""
    app.router.add_api_route(
        PATH, decisions, methods=["POST"], dependencies=checks, route_class_override=_InOneLine
    )


async def decisions(request: DecisionRequest, raw_request: Request) -> Response:
    """The exact distribution over given options, in OpenAI's shape; with the `uncertainty` field."""
    require_honoured(request)
    state = raw_request.app.state
    name = raw_request.headers["x-request-id"]
    work = decide(request, f"decisions-{name}", state.softspec_decisions, state.softspec_chat)
    body = await unless_gone(raw_request, work, gone=None)
    if body is None:
        return Response(status_code=CLIENT_WENT_AWAY)
    return JSONResponse(body)


class _InOneLine(APIRoute):
    """A route whose body's mistakes are told in one line, with the field's path."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def checked(request: Request) -> Response:
            try:
                return await handle(request)
            except RequestValidationError as error:
                kinds = {problem["type"] for problem in error.errors() if isinstance(problem, dict)}
                if error.body is not None and "json_invalid" not in kinds:
                    read_request(error.body)
                raise

        return checked
