"""The route that scores answers which exist already.

In: `app.state.softspec_chat` and `app.state.softspec_scoring`. Out: `POST /v1/uncertainty`.
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import Annotated, Any
from uuid import uuid4

from fastapi import Body, FastAPI, Request
from fastapi.params import Depends
from fastapi.responses import JSONResponse

from softspec.server.scores.request import ScoreRequest, read_request
from softspec.server.scores.scorer import Scoring, score

PATH = "/v1/uncertainty"
Endpoint = Callable[..., Awaitable[JSONResponse]]


def add_score_routes(
    app: FastAPI, checks: Sequence[Depends], cancelled_by_client: Callable[[Endpoint], Endpoint]
) -> None:
    """Add the route; `checks` are made of every body, and `cancelled_by_client` ends work that nobody waits for."""
    schema = {"content": {"application/json": {"schema": ScoreRequest.model_json_schema()}}}
    app.add_api_route(
        PATH,
        cancelled_by_client(uncertainty),
        methods=["POST"],
        dependencies=checks,
        openapi_extra={"requestBody": {**schema, "required": True}},
    )


async def uncertainty(content: Annotated[Any, Body()], raw_request: Request) -> JSONResponse:
    """The uncertainty of answers that exist already, as if the ensemble had written them."""
    state = raw_request.app.state
    scoring: Scoring = state.softspec_scoring
    name = raw_request.headers.get("x-request-id") or uuid4().hex
    body = await score(read_request(content), f"score-{name}", state.softspec_chat, scoring)
    return JSONResponse(body, headers={"x-request-id": name})
