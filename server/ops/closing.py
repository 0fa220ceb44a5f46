"""What a server gives back when it ends: the connections to its upstreams.

In: an app whose state gets `softspec_upstreams` later, if there are any. Out: the same app.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI

from softspec.server.upstream.upstreams import Upstreams


def close_upstreams_with(app: FastAPI) -> None:
    """Close them after the last request, around whatever else the app does at its start and its end."""
    of_app = app.router.lifespan_context

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[Any]:
        try:
            async with of_app(app) as state:
                yield state
        finally:
            upstreams: Upstreams | None = getattr(app.state, "softspec_upstreams", None)
            if upstreams is not None:
                await upstreams.aclose()

    app.router.lifespan_context = lifespan
