"""A span of a trace for every request that asks a model, by OpenTelemetry's conventions for generative AI.

In: HTTP requests with an account. Out: spans, current while their request is answered, with an event for every answer
that was judged. They hold no text of a prompt or an answer. Knows no exporter.

The conventions: https://github.com/open-telemetry/semantic-conventions-genai, which are in development.
"""

import time
from collections.abc import Mapping

from opentelemetry import trace
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import AttributeValue
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from softspec.server.observe.account import CLIENT_WENT_AWAY, Account, Judgement, current_account

PROVIDER = "softspec"
OPERATIONS = {
    "/v1/chat/completions": "chat",
    "/v1/chat/completions/batch": "chat",
    "/v1/responses": "chat",
    "/v1/messages": "chat",
    "/invocations": "chat",
    "/v1/completions": "text_completion",
    "/inference/v1/generate": "text_completion",
    "/v1/decisions": "decide",
    "/v1/uncertainty": "score",
}
"""Paths that ask a model -> `gen_ai.operation.name`; the conventions have no name for the last two."""
_W3C = TraceContextTextMapPropagator()


def trace_id_of(headers: Mapping[str, str]) -> str | None:
    """The trace that a caller's request belongs to, if it says so in a way that can be read."""
    caller = trace.get_current_span(_W3C.extract(headers)).get_span_context()
    return trace.format_trace_id(caller.trace_id) if caller.is_valid else None


class Traced:
    """ASGI middleware; where the engine traces too, its spans become children of these."""

    def __init__(self, app: ASGIApp, tracer: trace.Tracer, engine_traces: bool = False) -> None:
        self._app = app
        self._tracer = tracer
        self._engine_traces = engine_traces

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on within its span."""
        account = current_account.get()
        operation = _operation_of(scope)
        if account is None or operation is None:
            await self._app(scope, receive, send)
            return
        headers = MutableHeaders(scope=scope)
        span = self._tracer.start_span(
            operation, _W3C.extract(headers), trace.SpanKind.SERVER, _asked(scope, operation)
        )
        account.trace_id = trace.format_trace_id(span.get_span_context().trace_id)
        stream = _StreamWatch(account)

        async def watched_send(message: Message) -> None:
            stream.watch(message)
            await send(message)

        # What an exception says may quote the request.
        with trace.use_span(span, end_on_exit=True, record_exception=False, set_status_on_exception=False):
            if self._engine_traces:
                _W3C.inject(headers)
            try:
                await self._app(scope, receive, watched_send)
            finally:
                if account.model is not None:
                    span.update_name(f"{operation} {account.model}")
                span.set_attributes(_told(account, getattr(scope.get("route"), "path", None)) | stream.told())
                if account.error is not None or (account.status or 0) >= 500:
                    span.set_status(trace.StatusCode.ERROR)
                for judgement in account.judgements:
                    span.add_event("gen_ai.evaluation.result", _evaluated(judgement), judgement.at)


class _StreamWatch:
    """Whether an answer is streamed, and when its first chunk is sent."""

    def __init__(self, account: Account) -> None:
        self._began_at = account.began_at
        self._is_stream = False
        self._first_chunk_s: float | None = None

    def watch(self, message: Message) -> None:
        """Look at what is sent."""
        if message["type"] == "http.response.start":
            kind = Headers(raw=message.get("headers", [])).get("content-type", "")
            self._is_stream = kind.startswith("text/event-stream")
        elif self._is_stream and self._first_chunk_s is None and message.get("body"):
            self._first_chunk_s = time.monotonic() - self._began_at

    def told(self) -> dict[str, AttributeValue]:
        """The attributes of a stream; none of another answer."""
        if self._first_chunk_s is None:
            return {}
        return {
            "gen_ai.request.stream": True,
            "gen_ai.response.time_to_first_chunk": self._first_chunk_s,
        }


def _operation_of(scope: Scope) -> str | None:
    if scope["type"] != "http" or scope["method"] != "POST":
        return None
    return OPERATIONS.get(scope["path"].removeprefix(scope.get("root_path", "")))


def _asked(scope: Scope, operation: str) -> dict[str, AttributeValue]:
    """What is known before a request is answered."""
    address, port = scope.get("server") or (None, None)
    known = {
        "gen_ai.operation.name": operation,
        "gen_ai.provider.name": PROVIDER,
        "http.request.method": scope["method"],
        "url.path": scope["path"],
        "url.scheme": scope.get("scheme"),
        "server.address": address,
        "server.port": port,
    }
    return {name: value for name, value in known.items() if value is not None}


def _told(account: Account, route: str | None) -> dict[str, AttributeValue]:
    """What is known afterwards."""
    status, meter = account.status or CLIENT_WENT_AWAY, account.meter
    failed = status >= 400
    known = {
        "gen_ai.request.model": account.model,
        "gen_ai.response.model": None if failed else account.answered_by or account.model,
        "gen_ai.usage.input_tokens": meter.prompt_tokens,
        "gen_ai.usage.output_tokens": meter.completion_tokens,
        "http.response.status_code": status,
        "http.route": route,
        "error.type": account.error or (str(status) if failed else None),
        "softspec.request_id": account.request_id,
        "softspec.key": account.key,
    }
    return {name: value for name, value in known.items() if value is not None}


def _evaluated(judgement: Judgement) -> dict[str, AttributeValue]:
    known = {
        "gen_ai.evaluation.name": "mutual_information",
        "gen_ai.evaluation.score.value": judgement.mutual_information,
        "gen_ai.evaluation.score.label": judgement.decision,
        "gen_ai.evaluation.explanation": judgement.reason,
    }
    return {name: value for name, value in known.items() if value is not None}
