"""The routes of the other dialects, in place of vLLM's of the same path.

In: vLLM's own routes, and `app.state.softspec_chat`. Out: theirs, with the `uncertainty` field where an ensemble
answers. Knows FastAPI; vLLM only as arguments.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import cast

from fastapi import FastAPI, Request, Response
from fastapi.params import Depends
from fastapi.responses import JSONResponse
from pydantic import BaseModel

from softspec.errors import SoftspecError
from softspec.server.chat.routes import UpstreamRoute
from softspec.server.chat.unsupported import EnsembleRequest
from softspec.server.dialects.dialect import Dialect
from softspec.server.dialects.messages import Messages
from softspec.server.dialects.responses import Responses
from softspec.server.dialects.service import answer
from softspec.server.ops.errors import error_body, error_headers, error_status

DIALECTS: Mapping[str, Dialect] = {dialect.path: dialect for dialect in (Responses(), Messages())}


def add_dialect_routes(
    app: FastAPI, upstream: Mapping[str, UpstreamRoute], checks: Sequence[Depends]
) -> None:
    """Add a route for every dialect, around vLLM's of its path; `checks` are made of every body."""
    for path, dialect in DIALECTS.items():
        app.add_api_route(path, _endpoint(upstream[path], dialect), methods=["POST"], dependencies=checks)


def error_at(path: str, error: SoftspecError) -> JSONResponse:
    """The answer that one of our errors becomes at a path, in the envelope of the API that is there."""
    spoken = (each for each in DIALECTS.values() if f"{path}/".startswith(f"{each.path}/"))
    dialect = next(spoken, None)
    body = error_body(error) if dialect is None else dialect.error_body(error)
    return JSONResponse(body, error_status(error), error_headers(error))


def _endpoint(
    upstream: UpstreamRoute, dialect: Dialect
) -> Callable[[BaseModel, Request], Awaitable[Response]]:
    async def dialects(request: BaseModel, raw_request: Request) -> Response:
        """vLLM's route of this path; on an ensemble with the `uncertainty` field."""
        service = raw_request.app.state.softspec_chat
        try:
            return await answer(
                cast(EnsembleRequest, request), raw_request, upstream.answer, service, dialect
            )
        except SoftspecError as error:
            return error_at(dialect.path, error)

    # FastAPI takes the body's fields from the annotation, and vLLM's class is known only here.
    dialects.__annotations__["request"] = upstream.body
    return dialects
