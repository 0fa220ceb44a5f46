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

from softspec.artefact.calibration import calibration_of
from softspec.engine.trace import tracing
from softspec.errors import FieldError
from softspec.maths.answer import summarise
from softspec.server.chat.recording import row_about
from softspec.server.chat.replies import Outcome, Settled, judge_choice
from softspec.server.chat.service import Route, Service, send
from softspec.server.chat.unsupported import (
    EnsembleRequest,
    refuse_extension,
    refuse_reserved,
    refuse_unsupported,
)
from softspec.server.chat.wire import EXTENSION, Terms
from softspec.server.dialects.dialect import Dialect
from softspec.server.dialects.judged import JudgedStream, only_choice, report_on
from softspec.server.observe.account import CLIENT_WENT_AWAY, note_decision
from softspec.server.ops.metrics import Metrics
from softspec.server.policy.running import judge_of
from softspec.server.record.rows import Row

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
    request.model = service.model_named(request.model, request)
    refuse_reserved(request)
    if request.model not in service.ensembles:
        refuse_extension(request)
        return await route(request, raw_request) or Response(status_code=CLIENT_WENT_AWAY)
    refuse_unsupported(request)
    dialect.prepare(request)
    terms = _terms(request, service, dialect)
    settled = await _settling(request, raw_request, service, dialect)
    with tracing(judge_of(terms.policy)) as trace:
        response = await route(request, raw_request) or Response(status_code=CLIENT_WENT_AWAY)
    if isinstance(response, StreamingResponse):
        stream = JudgedStream(
            trace,
            terms,
            dialect.events(request),
            decode=service.decode,
            settled=settled,
            observe_first_token=partial(_first_token, service.metrics, request.model, started),
        )
        response.body_iterator = stream.rewrite(cast(AsyncGenerator[str, None], response.body_iterator))
    elif isinstance(response, JSONResponse) and response.status_code == 200:
        only_choice(trace)
        outcome = judge_choice(0, trace, terms.policy)
        settled(outcome)
        report = report_on(outcome, terms, service.decode)
        send(response, dialect.annotated(json.loads(bytes(response.body)), outcome.decision, report), report)
    return response


def _terms(request: EnsembleRequest, service: Service, dialect: Dialect) -> Terms:
    extension = (request.model_extra or {}).pop(EXTENSION, None)
    calibration = calibration_of(service.calibration(str(request.model)), "answers")
    terms = service.terms_of(extension, calibration)
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


async def _settling(
    request: EnsembleRequest, raw_request: Request, service: Service, dialect: Dialect
) -> Settled:
    """Who is told what became of the answer: the metrics, and whoever keeps what was not answered."""
    model = str(request.model)
    observe = service.metrics.of_request(model, 1)
    body = await raw_request.body()

    def row(outcome: Outcome, seconds: float) -> Row:
        return row_about(outcome, model, dialect.conversation(json.loads(body)), seconds)

    def settled(outcome: Outcome) -> None:
        trace = outcome.trace
        summary = summarise(outcome.tokens, trace.log_weights, trace.weights_rule)
        observe(outcome.decision, summary, trace.calibration)
        decision = outcome.decision
        note_decision(decision.action, summary.mutual_information, decision.objection)
        if service.recorder is not None and outcome.decision.reason is not None:
            service.recorder.keep(model, partial(row, outcome, time.time()))

    return settled


def _first_token(metrics: Metrics, model: str, started: float) -> None:
    metrics.first_token(model, time.monotonic() - started)
