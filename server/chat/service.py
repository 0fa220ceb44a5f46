"""One chat or text completion: its path through the server, from the request's fields to the answer's.

In: vLLM's request model and vLLM's route. Out: that route's response with the `uncertainty` field. Requests
to a single member or the base pass through untouched. Knows FastAPI; the engine only by the trace it fills.
"""

import json
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

from fastapi import Request, Response
from fastapi.responses import JSONResponse, StreamingResponse

from softspec.engine.trace import RequestTrace, tracing
from softspec.errors import FieldError, UnknownModelError
from softspec.server.chat.replies import annotate_body
from softspec.server.chat.stream import AnswerStream
from softspec.server.chat.structured import wants_fields
from softspec.server.chat.unsupported import (
    OpenAIRequest,
    refuse_extension,
    refuse_reserved,
    refuse_unsupported,
)
from softspec.server.chat.wire import EXTENSION, DecodeToken, Terms, read_terms
from softspec.server.ops.metrics import Metrics
from softspec.server.policy.policy import Policy
from softspec.server.policy.running import judge_of

# vLLM's route; None when the client went away.
Route = Callable[[Any, Request], Awaitable[Response | None]]
_CLIENT_WENT_AWAY = 499


@dataclass(frozen=True)
class Service:
    """What the routes of completions need to know of this server.

    `ensembles` always shows those served now; `models` gives all names, the ensembles' first.
    """

    ensembles: Collection[str]
    models: Callable[[], Sequence[str]]
    default_policy: Policy
    pinned: bool
    decode: DecodeToken
    metrics: Metrics

    def model_named(self, model: str | None) -> str:
        """The model that a request asks: the one that it names or, if it names none, the only ensemble.

        vLLM would let the base answer, without a number and past every policy.

        Raises:
            FieldError: it names none, and there is more than one or no ensemble.
            UnknownModelError: it names one that is not served.
        """
        if not model and len(self.ensembles) == 1:
            return next(iter(self.ensembles))
        served = ", ".join(self.models())
        if not model:
            raise FieldError(
                "model", f"'model' is missing and there is not one ensemble: expected one of {served}"
            )
        if model not in self.models():
            raise UnknownModelError(f"The model `{model}` does not exist: expected one of {served}.")
        return model


async def complete(request: OpenAIRequest, raw_request: Request, route: Route, service: Service) -> Response:
    """Answer a chat or text completion.

    Raises:
        FieldError: a field that this model cannot honour, or no model.
        EngineError: the engine failed before the first byte was sent.
    """
    started = time.monotonic()
    request.model = service.model_named(request.model)
    refuse_reserved(request)
    if request.model not in service.ensembles:
        refuse_extension(request)
        return await route(request, raw_request) or Response(status_code=_CLIENT_WENT_AWAY)
    refuse_unsupported(request)
    extension = (request.model_extra or {}).pop(EXTENSION, None)
    terms = read_terms(extension, service.default_policy, service.pinned)
    terms = replace(terms, fields=wants_fields(request, terms.detail))
    hide_usage = _ask_for_continuous_usage(request, terms)
    with tracing(judge_of(terms.policy)) as trace:
        response = await route(request, raw_request) or Response(status_code=_CLIENT_WENT_AWAY)
    if isinstance(response, StreamingResponse):
        _annotate_stream(response, request, trace, terms, hide_usage, started, service)
    elif isinstance(response, JSONResponse) and response.status_code == 200:
        _annotate_json(response, request, trace, terms, service)
    response.headers.setdefault("x-request-id", raw_request.headers.get("x-request-id", request.request_id))
    return response


def _annotate_json(
    response: JSONResponse, request: OpenAIRequest, trace: RequestTrace, terms: Terms, service: Service
) -> None:
    observe = service.metrics.of_request((request.n or 1) * _num_prompts(request))
    body = annotate_body(json.loads(bytes(response.body)), trace, terms, service.decode, observe)
    response.body = response.render(body)
    response.headers["content-length"] = str(len(response.body))
    # Headers tell of the first choice only; with n > 1 read the body.
    first = body["choices"][0][EXTENSION]
    response.headers["x-softspec-decision"] = first["decision"]
    if "mutual_information" in first:
        response.headers["x-softspec-mutual-information"] = f"{first['mutual_information']:.6g}"


def _annotate_stream(
    response: StreamingResponse,
    request: OpenAIRequest,
    trace: RequestTrace,
    terms: Terms,
    hide_usage: bool,
    started: float,
    service: Service,
) -> None:
    num_samples = request.n or 1
    num_choices = num_samples * _num_prompts(request)
    stream = AnswerStream(
        trace,
        terms,
        num_choices=num_choices,
        num_samples=num_samples,
        hide_usage=hide_usage,
        decode=service.decode,
        observe=service.metrics.of_request(num_choices),
        observe_first_token=partial(_first_token, service.metrics, started),
    )
    response.body_iterator = stream.events(cast(AsyncGenerator[str, None], response.body_iterator))


def _first_token(metrics: Metrics, started: float) -> None:
    metrics.first_token(time.monotonic() - started)


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
