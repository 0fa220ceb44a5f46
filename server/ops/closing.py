"""What a server gives back when it ends: its shadows, its connections, and the rows and spans that it still holds.

In: an app whose state gets `softspec_rollout`, `softspec_upstreams`, `softspec_access`, `softspec_recorder` and
`softspec_traces` later, where there are any. Out: the same app.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from opentelemetry.sdk.trace import TracerProvider
from starlette.datastructures import State

from softspec.server.access.access import Access
from softspec.server.observe.export import close_provider
from softspec.server.record.recorder import Recorder
from softspec.server.rollout.rollout import Rollout
from softspec.server.upstream.upstreams import Upstreams


def close_with(app: FastAPI) -> None:
    """Close them after the last request, and before whatever else the app does at its end: vLLM's drops the state."""
    of_app = app.router.lifespan_context

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[Any]:
        async with of_app(app) as state:
            try:
                yield state
            finally:
                await _close(app.state)

    app.router.lifespan_context = lifespan


async def _close(state: State) -> None:
    rollout: Rollout | None = getattr(state, "softspec_rollout", None)
    if rollout is not None:
        await rollout.shadows.aclose()
    upstreams: Upstreams | None = getattr(state, "softspec_upstreams", None)
    if upstreams is not None:
        await upstreams.aclose()
    access: Access | None = getattr(state, "softspec_access", None)
    if access is not None:
        await access.aclose()
    recorder: Recorder | None = getattr(state, "softspec_recorder", None)
    if recorder is not None:
        await asyncio.to_thread(recorder.close)
    traces: TracerProvider | None = getattr(state, "softspec_traces", None)
    if traces is not None:
        await close_provider(traces)
