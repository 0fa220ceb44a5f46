"""One chat or text completion: its path through the server, from the request's fields to the answer's.

In: vLLM's request model and vLLM's route. Out: that route's response with the `uncertainty` field, answered by an
upstream where the policy routes. Requests to a single member or the base pass through untouched. Knows FastAPI; the
engine only by the trace it fills.
"""

import json
import time
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, cast

from fastapi import Request, Response
from fastapi.responses import JSONResponse, StreamingResponse

from softspec.artefact.calibration import Calibration, calibration_of
from softspec.engine.trace import RequestTrace, tracing
from softspec.errors import FieldError, UnknownModelError
from softspec.maths.answer import summarise
from softspec.server.access.callers import let_ask, may_ask, require_model, require_policy
from softspec.server.chat.forwarding import Forwarding
from softspec.server.chat.leaving import unless_gone
from softspec.server.chat.recording import recorded
from softspec.server.chat.replies import Outcome, Settled, annotate_body, judge_choices
from softspec.server.chat.routing import answered_elsewhere
from softspec.server.chat.stream import AnswerStream
from softspec.server.chat.structured import wants_fields
from softspec.server.chat.unsupported import (
    OpenAIRequest,
    refuse_extension,
    refuse_reserved,
    refuse_unsupported,
)
from softspec.server.chat.usage import StreamUsage
from softspec.server.chat.wire import EXTENSION, DecodeToken, Json, Terms, read_terms
from softspec.server.observe.account import CLIENT_WENT_AWAY, current_account, note_decision, note_model
from softspec.server.ops.metrics import Metrics
from softspec.server.policy.rules import PolicyRules
from softspec.server.policy.running import judge_of
from softspec.server.record.recorder import Recorder
from softspec.server.rollout.aliases import Aliases, sticky_in
from softspec.server.rollout.shadows import Shadows
from softspec.server.upstream.client import Upstream

# vLLM's route; None when the client went away.
Route = Callable[[Any, Request], Awaitable[Response | None]]


@dataclass(frozen=True)
class Service:
    """What the routes of completions need to know of this server.

    `ensembles` always shows those served now; `models` gives all names, the ensembles' first, and `aliases` what else
    stands for ensembles; `shadows` are asked beside them. `calibration` is what an ensemble knows of its confidence,
    None if nothing.
    """

    ensembles: Collection[str]
    models: Callable[[], Sequence[str]]
    rules: PolicyRules
    decode: DecodeToken
    metrics: Metrics
    upstreams: Mapping[str, Upstream] = field(default_factory=dict)
    recorder: Recorder | None = None
    calibration: Callable[[str], Calibration | None] = lambda _: None
    aliases: Aliases = field(default_factory=Aliases)
    shadows: Shadows = field(default_factory=Shadows)

    def model_named(self, model: str | None, request: object) -> str:
        """The model that answers a request which names this one: see `name_asked` and `model_behind`."""
        return self.model_behind(self.name_asked(model), request)

    def name_asked(self, model: str | None) -> str:
        """The name that a request asks: its own or, if it has none, that of the only alias, or else ensemble.

        vLLM would let the base answer, without a number and past every policy.

        Raises:
            FieldError: it names none, and there is more than one or no ensemble.
            UnknownModelError: it names one that is not served.
            ForbiddenError: whoever asks may not ask it.
        """
        model = model or next(
            (next(iter(one)) for one in (self.aliases, self.ensembles) if len(one) == 1), None
        )
        names = [*self.aliases, *self.models()]
        served = ", ".join(filter(may_ask, names))
        if not model:
            raise FieldError(
                "model", f"'model' is missing and there is not one ensemble: expected one of {served}"
            )
        if model not in names:
            raise UnknownModelError(f"The model `{model}` does not exist: expected one of {served}.")
        require_model((model,))
        return model

    def model_behind(self, name: str, request: object) -> str:
        """The model that a name stands for in this request, which may ask it by that name. It is noted."""
        model = name
        if name in self.aliases:
            model = self.aliases.chosen(name, sticky_in(request) or _request_id())
            let_ask(model)
        note_model(model)
        return model

    def terms_of(self, extension: object, calibration: Calibration | None) -> Terms:
        """What a request's `uncertainty` field wants, of an ensemble with this calibration.

        Raises:
            FieldError: see `read_terms`.
            ForbiddenError: whoever asks may not have this policy.
        """
        terms = read_terms(extension, self.rules, calibration)
        require_policy(terms.policy)
        return terms


async def complete(request: OpenAIRequest, raw_request: Request, route: Route, service: Service) -> Response:
    """Answer a chat or text completion.

    Raises:
        FieldError: a field that this model cannot honour, or no model.
        EngineError: the engine failed before the first byte was sent.
        UpstreamError: so did an upstream, and the policy says that this is an error.
    """
    started = time.monotonic()
    request.model = service.model_named(request.model, request)
    refuse_reserved(request)
    if request.model not in service.ensembles:
        refuse_extension(request)
        return await route(request, raw_request) or Response(status_code=CLIENT_WENT_AWAY)
    refuse_unsupported(request)
    extension = (request.model_extra or {}).pop(EXTENSION, None)
    calibration = calibration_of(service.calibration(request.model), "answers")
    terms = service.terms_of(extension, calibration)
    terms = replace(terms, fields=wants_fields(request, terms.detail))
    asked = await _asked(request, raw_request, service)
    hide_usage = _ask_for_continuous_usage(request, terms)
    with tracing(judge_of(terms.policy, streamed=bool(request.stream))) as trace:
        response = await route(request, raw_request) or Response(status_code=CLIENT_WENT_AWAY)
    if isinstance(response, StreamingResponse):
        _annotate_stream(response, request, trace, terms, asked, hide_usage, started, service)
    elif isinstance(response, JSONResponse) and response.status_code == 200:
        work = _annotate_json(response, trace, terms, asked, service)
        gone = Response(status_code=CLIENT_WENT_AWAY)
        response = await (unless_gone(raw_request, work, gone) if terms.policy.action == "route" else work)
    return response


@dataclass(frozen=True)
class _Asked:
    """What was asked, and who is told what became of it."""

    num_choices: int
    forwarding: Forwarding
    settled: Settled


async def _asked(request: OpenAIRequest, raw_request: Request, service: Service) -> _Asked:
    num_samples = request.n or 1
    num_choices = num_samples * _num_prompts(request)
    observe = service.metrics.of_request(str(request.model), num_choices)
    forwarding = Forwarding(
        path="/chat/completions" if hasattr(request, "messages") else "/completions",
        # Read again, as vLLM's models change the parsed body on their way through it.
        body=await raw_request.body(),
        headers=raw_request.headers,
        num_samples=num_samples,
        upstreams=service.upstreams,
    )

    def settled(outcome: Outcome) -> None:
        trace = outcome.trace
        summary = summarise(outcome.tokens, trace.log_weights, trace.weights_rule)
        observe(outcome.decision, summary, trace.calibration)
        decision, forwarded = outcome.decision, outcome.forwarded
        answered_by = forwarded.model if forwarded else None
        note_decision(decision.action, summary.mutual_information, decision.objection, answered_by)
        if service.recorder is not None and outcome.decision.reason is not None:
            model = str(request.model)
            service.recorder.keep(model, partial(recorded, outcome, model, forwarding, time.time()))

    return _Asked(num_choices, forwarding, settled)


async def _annotate_json(
    response: JSONResponse, trace: RequestTrace, terms: Terms, asked: _Asked, service: Service
) -> JSONResponse:
    body = json.loads(bytes(response.body))
    outcomes = judge_choices(body, trace, terms.policy)
    if terms.policy.action == "route":
        outcomes = await answered_elsewhere(outcomes, asked.forwarding, terms.policy)
    for outcome in outcomes:
        asked.settled(outcome)
    body = annotate_body(body, outcomes, terms, service.decode)
    # Headers tell of the first choice only; with n > 1 read the body.
    send(response, body, body["choices"][0][EXTENSION])
    return response


def send(response: JSONResponse, body: Json, report: Json) -> None:
    """Give a response this body, and headers that tell of this `uncertainty`."""
    response.body = response.render(body)
    response.headers["content-length"] = str(len(response.body))
    response.headers["x-softspec-decision"] = report["decision"]
    if "upstream" in report:
        response.headers["x-softspec-upstream"] = report["upstream"]
    if "mutual_information" in report:
        response.headers["x-softspec-mutual-information"] = f"{report['mutual_information']:.6g}"


def _annotate_stream(
    response: StreamingResponse,
    request: OpenAIRequest,
    trace: RequestTrace,
    terms: Terms,
    asked: _Asked,
    hide_usage: bool,
    started: float,
    service: Service,
) -> None:
    options = request.stream_options
    is_continuous = bool(options and options.continuous_usage_stats) and not hide_usage
    stream = AnswerStream(
        trace,
        terms,
        asked.forwarding,
        StreamUsage(trace, asked.forwarding.num_samples, hide_usage, is_continuous),
        num_choices=asked.num_choices,
        decode=service.decode,
        settled=asked.settled,
        observe_first_token=partial(_first_token, service.metrics, str(request.model), started),
    )
    response.body_iterator = stream.events(cast(AsyncGenerator[str, None], response.body_iterator))


def _request_id() -> str:
    """The id of the request that is answered."""
    account = current_account.get()
    return uuid.uuid4().hex if account is None else account.request_id


def _first_token(metrics: Metrics, model: str, started: float) -> None:
    metrics.first_token(model, time.monotonic() - started)


def _ask_for_continuous_usage(request: OpenAIRequest, terms: Terms) -> bool:
    """Ask vLLM for the prompt's length early: its last chunk tells it, which an abstaining stream never reaches.

    Returns:
        whether the caller did not ask for that, so that it must be taken out again.
    """
    options = request.stream_options
    if (
        terms.policy.action == "answer"
        or not options
        or not options.include_usage
        or options.continuous_usage_stats
    ):
        return False
    options.continuous_usage_stats = True
    return True


def _num_prompts(request: OpenAIRequest) -> int:
    """How many prompts a request has: a completion's is one text, one list of token ids, or a list of either."""
    prompt = getattr(request, "prompt", None)
    return len(prompt) if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int) else 1
