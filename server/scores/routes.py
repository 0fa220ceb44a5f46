"""The route that scores answers which exist already.

In: `app.state.softspec_chat` and `app.state.softspec_scoring`. Out: `POST /v1/uncertainty`.
"""

from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import Body, FastAPI, Request, Response
from fastapi.params import Depends
from fastapi.responses import JSONResponse

from softspec.server.chat.leaving import unless_gone
from softspec.server.observe.account import CLIENT_WENT_AWAY
from softspec.server.scores.request import ScoreRequest, read_request
from softspec.server.scores.scorer import Scoring, score

PATH = "/v1/uncertainty"


def add_score_routes(app: FastAPI, checks: Sequence[Depends]) -> None:
    """Add the route; `checks` are made of every body."""
    schema = {"content": {"application/json": {"schema": ScoreRequest.model_json_schema()}}, "required": True}
    app.add_api_route(
        PATH, uncertainty, methods=["POST"], dependencies=checks, openapi_extra={"requestBody": schema}
    )


async def uncertainty(content: Annotated[Any, Body()], raw_request: Request) -> Response:
    """The uncertainty of answers that exist already, as if the ensemble had written them."""
    state = raw_request.app.state
    scoring: Scoring = state.softspec_scoring
    name = raw_request.headers["x-request-id"]
    work = score(read_request(content), f"score-{name}", state.softspec_chat, scoring)
    body = await unless_gone(raw_request, work, gone=None)
    if body is None:
        return Response(status_code=CLIENT_WENT_AWAY)
    return JSONResponse(body)
