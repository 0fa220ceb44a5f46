"""The routes of chat and text completions, in place of vLLM's of the same path.

In: vLLM's own routes, and `app.state.softspec_chat`. Out: theirs, with the `uncertainty` field where an ensemble
answers. Knows FastAPI; vLLM only as arguments.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import cast

from fastapi import FastAPI, Request, Response
from fastapi.params import Depends
from pydantic import BaseModel

from softspec.server.chat.service import Route, complete
from softspec.server.chat.shadowing import follow
from softspec.server.chat.unsupported import OpenAIRequest


@dataclass(frozen=True)
class UpstreamRoute:
    """One of vLLM's routes: the body that it reads, and the function that answers it."""

    body: type[BaseModel]
    answer: Route


def add_chat_routes(app: FastAPI, upstream: Mapping[str, UpstreamRoute], checks: Sequence[Depends]) -> None:
    """Add a route for every path of `upstream`; `checks` are made of every body."""
    for path, route in upstream.items():
        app.add_api_route(path, _endpoint(route), methods=["POST"], dependencies=checks)


def _endpoint(upstream: UpstreamRoute) -> Callable[[BaseModel, Request], Awaitable[Response]]:
    async def completions(request: BaseModel, raw_request: Request) -> Response:
        """vLLM's completions; on an ensemble with the `uncertainty` field."""
        service = raw_request.app.state.softspec_chat
        asked = cast(OpenAIRequest, request)
        name = asked.model
        response = await complete(asked, raw_request, upstream.answer, service)
        if response.status_code == HTTPStatus.OK:
            await follow(name, asked, raw_request, upstream.answer, service)
        return response

    # FastAPI takes the body's fields from the annotation, and vLLM's class is known only here.
    completions.__annotations__["request"] = upstream.body
    return completions
