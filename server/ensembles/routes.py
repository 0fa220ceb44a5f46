"""The routes by which ensembles come and go in a running server.

In: `app.state.softspec_registry`, `app.state.softspec_canary` for what is new, and `app.state.softspec_rollout`, which
says what must stay. Out: `POST /v1/load_ensemble` and
`POST /v1/unload_ensemble`; vLLM's routes for single adapters refuse. Errors are the registry's.
"""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fastapi import FastAPI, Request
from fastapi.params import Depends
from fastapi.responses import PlainTextResponse

from softspec.artefact.manifest import load_manifest
from softspec.errors import ConfigError
from softspec.server.ensembles.wire import LoadEnsembleRequest, UnloadEnsembleRequest

if TYPE_CHECKING:
    from softspec.engine.front.registry import Registry


def add_ensemble_routes(app: FastAPI, checks: Sequence[Depends]) -> None:
    """Add the routes; `checks` are made of every body."""
    app.add_api_route("/v1/load_ensemble", load_ensemble, methods=["POST"], dependencies=checks)
    app.add_api_route("/v1/unload_ensemble", unload_ensemble, methods=["POST"], dependencies=checks)
    for path in ("/v1/load_lora_adapter", "/v1/unload_lora_adapter"):
        app.add_api_route(path, refuse_single_adapter, methods=["POST"])


async def load_ensemble(request: LoadEnsembleRequest, raw_request: Request) -> PlainTextResponse:
    """Serve one more ensemble, or replace one; the answer comes when new requests go to it."""
    state = raw_request.app.state
    registry: Registry = state.softspec_registry
    manifest = await asyncio.to_thread(load_manifest, Path(request.path))
    state.softspec_chat.rules.require_followed({manifest.name: manifest.calibration})
    with state.softspec_rollout.loading(manifest.name):
        ensemble = await registry.load(Path(request.path), request.replace, state.softspec_canary)
    state.softspec_chat.metrics.expect(registry.lora_requests, registry.ensembles)
    return PlainTextResponse(f"Success: ensemble '{ensemble.name}' added successfully.")


async def unload_ensemble(request: UnloadEnsembleRequest, raw_request: Request) -> PlainTextResponse:
    """Serve an ensemble no longer; the answers that it has begun are finished."""
    state = raw_request.app.state
    registry: Registry = state.softspec_registry
    with state.softspec_rollout.unloading(request.name):
        await registry.unload(request.name)
    return PlainTextResponse(f"Success: ensemble '{request.name}' removed successfully.")


async def refuse_single_adapter() -> None:
    """Refuse in place of vLLM's routes, whose adapters would take the members' numbers and room in the engine.

    Raises:
        ConfigError: always.
    """
    raise ConfigError("single adapters cannot be served beside ensembles: use /v1/load_ensemble instead")
