"""One request in another dialect than chat's: its path through the server.

In: vLLM's request model and vLLM's route. Out: that route's response with the `uncertainty` field. Requests to a
single member or the base pass through untouched. Knows FastAPI; the engine only by the trace it fills.
"""

import json
import time
from collections.abc import AsyncGenerator
from functools import partial
from typing import cast

from fastapi import Request, Response
from fastapi.responses import JSONResponse, StreamingResponse

from softspec.engine.trace import tracing
from softspec.errors import FieldError
from softspec.server.chat.replies import choice_trace, verdict_on
from softspec.server.chat.service import CLIENT_WENT_AWAY, Route, Service, send
from softspec.server.chat.unsupported import (
    EnsembleRequest,
    refuse_extension,
    refuse_reserved,
    refuse_unsupported,
)
from softspec.server.chat.wire import EXTENSION, Terms, read_terms
from softspec.server.dialects.dialect import Dialect
from softspec.server.dialects.judged import JudgedStream
from softspec.server.ops.metrics import Metrics
from softspec.server.policy.running import judge_of

_DETAILS = ("summary", "tokens", "none")


async def answer(
    request: EnsembleRequest, raw_request: Request, route: Route, service: Service, dialect: Dialect
) -> Response:
    """Answer a request in this dialect.

    Raises:
        FieldError: a field that this model cannot honour, or no model.
        EngineError: the engine failed before the first byte was sent.
    """
    started = time.monotonic()
    request.model = service.model_named(request.model)
    refuse_reserved(request)
    if request.model not in service.ensembles:
        refuse_extension(request)
        return await route(request, raw_request) or Response(status_code=CLIENT_WENT_AWAY)
    refuse_unsupported(request)
    dialect.prepare(request)
    terms = _terms(request, service, dialect)
    with tracing(judge_of(terms.policy)) as trace:
        response = await route(request, raw_request) or Response(status_code=CLIENT_WENT_AWAY)
    if isinstance(response, StreamingResponse):
        stream = JudgedStream(
            trace,
            terms,
            dialect.events(request),
            decode=service.decode,
            observe=service.metrics.of_request(request.model, 1),
            observe_first_token=partial(_first_token, service.metrics, request.model, started),
        )
        response.body_iterator = stream.rewrite(cast(AsyncGenerator[str, None], response.body_iterator))
    elif isinstance(response, JSONResponse) and response.status_code == 200:
        observe = service.metrics.of_request(request.model, 1)
        decision, report = verdict_on(choice_trace(trace, 0), terms, service.decode, observe)
        send(response, dialect.annotated(json.loads(bytes(response.body)), decision, report), report)
    _name(response, request, raw_request)
    return response


def _terms(request: EnsembleRequest, service: Service, dialect: Dialect) -> Terms:
    extension = (request.model_extra or {}).pop(EXTENSION, None)
    terms = read_terms(extension, service.rules)
    if terms.policy.action not in ("answer", "abstain"):
        raise FieldError(
            f"{EXTENSION}.policy.action",
            f"{dialect.path} does not {terms.policy.action}, as no upstream is asked in its dialect: ask "
            f"'{request.model}' at /v1/chat/completions or /v1/completions, or give action 'abstain'",
        )
    if terms.detail not in _DETAILS:
        raise FieldError(
            f"{EXTENSION}.detail",
            f"{EXTENSION}.detail '{terms.detail}' is not available at {dialect.path}: expected "
            f"{', '.join(_DETAILS)}; ask at /v1/chat/completions",
        )
    return terms


def _first_token(metrics: Metrics, model: str, started: float) -> None:
    metrics.first_token(model, time.monotonic() - started)


def _name(response: Response, request: EnsembleRequest, raw_request: Request) -> None:
    """Say by which name the request is in the log: the caller's, or vLLM's if the request has one."""
    name = raw_request.headers.get("x-request-id") or getattr(request, "request_id", None)
    if name:
        response.headers.setdefault("x-request-id", name)
