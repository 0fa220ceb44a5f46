"""The route that tells whether the server may receive traffic.

In: `app.state.softspec_readiness`. Out: `GET /ready`.
"""

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

from softspec.server.ops.readiness import Readiness


def add_ops_routes(app: FastAPI) -> None:
    """Add `/ready`."""
    app.add_api_route("/ready", ready, methods=["GET"])


async def ready(raw_request: Request) -> JSONResponse:
    """Whether to send traffic here: 200, or 503 with the reason."""
    readiness: Readiness = raw_request.app.state.softspec_readiness
    problem = readiness.problem()
    if problem is None:
        return JSONResponse({"status": "ready"})
    return JSONResponse({"status": "not ready", "reason": problem}, status_code=503)
