"""Spans of requests by OpenTelemetry's conventions, through the real routes and into a memory, or to a collector."""

import asyncio
import json
import os
import socket
import threading
import time
from functools import partial
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import openai
import pytest
from fastapi import Request
from fastapi.testclient import TestClient
from opentelemetry import trace
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from starlette.requests import ClientDisconnect

from softspec.errors import ConfigError
from softspec.server.observe.account import Account
from softspec.server.observe.export import close_provider, engine_environment, tracer_provider
from softspec.server.observe.tracing import Traced
from softspec.server.policy.policy import Policy
from softspec.server.upstream.settings import UpstreamSettings
from tests.support.documents import blocks
from tests.support.fake_engine import AGREED, ENSEMBLE, PROMPT_TOKENS, TORN, FakeEngine, client_of, make_app
from tests.support.scripted_upstream import Script, ScriptedUpstream, answer, chat_answer, chat_stream
from tests.support.tiny import random_adapters, tiny_llama

HELLO: Any = [{"role": "user", "content": "a canary"}]
ABSTAIN = Policy("abstain", "max_epistemic", 0.5)
TRACE, CALLER = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SAMPLED = f"00-{TRACE}-{CALLER}-01"
NOT_SAMPLED = f"00-{TRACE}-{CALLER}-00"
LEAVING = {"model": ENSEMBLE, "stream": True, "messages": HELLO}
SCOPE = {
    "type": "http",
    "asgi": {"version": "3.0", "spec_version": "2.4"},
    "method": "POST",
    "path": "/v1/chat/completions",
    "raw_path": b"/v1/chat/completions",
    "query_string": b"",
    "headers": [(b"content-type", b"application/json")],
}


class Observed:
    """A server whose spans are kept."""

    def __init__(
        self, engine: FakeEngine | None = None, policy: Policy | None = None, engine_traces: bool = False
    ) -> None:
        self.exporter = InMemorySpanExporter()
        provider = TracerProvider(shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.layer = partial(Traced, tracer=provider.get_tracer("softspec"), engine_traces=engine_traces)
        self.engine = engine or FakeEngine([AGREED])
        self.accounts: list[Account] = []
        self.app = make_app(self.engine, policy, observers=[self.accounts.append], layers=[self.layer])

    def chat(self, headers: dict[str, str] | None = None, **fields: Any) -> Any:
        body = {"model": ENSEMBLE, "messages": HELLO, **fields}
        created: Any = client_of(self.app).chat.completions.create(**body, extra_headers=headers)
        return list(created) if fields.get("stream") else created

    @property
    def span(self) -> ReadableSpan:
        (span,) = self.exporter.get_finished_spans()
        return span

    @property
    def context(self) -> trace.SpanContext:
        context = self.span.context
        assert context is not None
        return context

    @property
    def told(self) -> dict[str, Any]:
        return dict(self.span.attributes or {})

    @property
    def events(self) -> list[dict[str, Any]]:
        assert {event.name for event in self.span.events} <= {"gen_ai.evaluation.result"}
        return [dict(event.attributes or {}) for event in self.span.events]


def test_answer_is_a_span_of_the_server_with_the_conventions_names() -> None:
    observed = Observed()

    observed.chat(headers={"x-request-id": "mine"})

    assert observed.span.name == f"chat {ENSEMBLE}"
    assert observed.span.kind is trace.SpanKind.SERVER
    assert observed.span.status.is_unset
    assert observed.told == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "softspec",
        "gen_ai.request.model": ENSEMBLE,
        "gen_ai.response.model": ENSEMBLE,
        "gen_ai.usage.input_tokens": PROMPT_TOKENS,
        "gen_ai.usage.output_tokens": len(AGREED),
        "http.request.method": "POST",
        "http.response.status_code": 200,
        "http.route": "/v1/chat/completions",
        "server.address": "testserver",
        "server.port": 80,
        "softspec.request_id": "mine",
        "url.path": "/v1/chat/completions",
        "url.scheme": "http",
    }


def test_span_of_a_stream_lasts_as_long_and_knows_its_first_chunk() -> None:
    observed = Observed()

    chunks = observed.chat(stream=True)

    (account,) = observed.accounts
    assert account.ended_at is not None
    assert len(chunks) > len(AGREED)
    assert observed.told["gen_ai.request.stream"] is True
    assert 0 < observed.told["gen_ai.response.time_to_first_chunk"] <= account.ended_at - account.began_at
    assert observed.told["gen_ai.usage.output_tokens"] == len(AGREED)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_uncertainty_is_the_event_of_an_evaluation(stream: bool) -> None:
    observed = Observed(FakeEngine([TORN]), ABSTAIN)

    observed.chat(stream=stream)

    assert observed.accounts[0].mutual_information is not None
    assert observed.events == [
        {
            "gen_ai.evaluation.name": "mutual_information",
            "gen_ai.evaluation.score.value": observed.accounts[0].mutual_information,
            "gen_ai.evaluation.score.label": "abstain",
            "gen_ai.evaluation.explanation": "max_epistemic 0.60 > 0.50 at token 3",
        }
    ]
    start, end = observed.span.start_time or 0, observed.span.end_time or 0
    assert start <= observed.span.events[0].timestamp <= end


def test_document_shows_such_a_span() -> None:
    observed = Observed(FakeEngine([TORN]), ABSTAIN)
    observed.chat()
    (shown,) = [json.loads(block.text) for block in blocks() if '"span_id"' in block.text]

    assert shown["attributes"].keys() == observed.told.keys()
    assert [event["attributes"].keys() for event in shown["events"]] == [e.keys() for e in observed.events]


def test_every_choice_has_an_event_of_its_own() -> None:
    observed = Observed(FakeEngine([AGREED, TORN, AGREED]), ABSTAIN)

    observed.chat(n=3)

    labels = [event["gen_ai.evaluation.score.label"] for event in observed.events]
    assert labels == ["answer", "abstain", "answer"]


def test_span_of_a_single_member_has_no_event() -> None:
    observed = Observed(FakeEngine([TORN], measures=False), ABSTAIN)

    observed.chat(model=f"{ENSEMBLE}/member-0")

    assert observed.events == []
    assert observed.told["gen_ai.request.model"] == f"{ENSEMBLE}/member-0"


def test_refused_request_is_the_callers_error() -> None:
    observed = Observed()

    with pytest.raises(openai.NotFoundError):
        observed.chat(model="nobody")

    assert observed.span.name == "chat"
    assert observed.told["error.type"] == "404"
    assert observed.span.status.is_unset
    assert "gen_ai.request.model" not in observed.told


def test_failure_is_the_servers_error_without_its_words() -> None:
    observed = Observed(FakeEngine([AGREED], failure=RuntimeError("a canary")))
    http = TestClient(observed.app, raise_server_exceptions=False)

    http.post("/v1/chat/completions", json={"model": ENSEMBLE, "messages": HELLO})

    assert observed.told["error.type"] == "500"
    assert observed.span.status.status_code is trace.StatusCode.ERROR
    assert "canary" not in observed.span.to_json()


def test_stream_that_fails_in_the_middle_is_an_error() -> None:
    observed = Observed(FakeEngine([AGREED], measures=False))

    with pytest.raises(openai.APIError):
        observed.chat(stream=True)

    assert (observed.told["http.response.status_code"], observed.told["error.type"]) == (200, "EngineError")
    assert observed.span.status.status_code is trace.StatusCode.ERROR


def test_span_ends_when_the_client_goes_away() -> None:
    observed = Observed()
    asked = iter([{"type": "http.request", "body": json.dumps(LEAVING).encode()}])

    async def receive() -> Any:
        return next(asked, {"type": "http.disconnect"})

    async def send(message: Any) -> None:
        if message["type"] == "http.response.body":
            raise OSError("the connection is closed")

    with pytest.raises(ClientDisconnect):
        asyncio.run(observed.app(SCOPE, receive, send))

    assert observed.engine.aborted
    assert observed.told["gen_ai.usage.output_tokens"] < len(AGREED)
    assert observed.span.end_time is not None


def test_span_is_a_child_of_the_callers() -> None:
    observed = Observed()

    observed.chat(headers={"traceparent": SAMPLED, "tracestate": "vendor=x"})

    assert observed.span.parent is not None
    assert trace.format_trace_id(observed.context.trace_id) == TRACE
    assert trace.format_span_id(observed.span.parent.span_id) == CALLER
    assert observed.context.trace_state.get("vendor") == "x"
    assert observed.accounts[0].trace_id == TRACE


@pytest.mark.parametrize("text", ["", "garbage", SAMPLED.replace(CALLER, "0" * 16), SAMPLED + "-more"])
def test_caller_that_cannot_be_read_is_no_parent(text: str) -> None:
    observed = Observed()

    observed.chat(headers={"traceparent": text})

    assert observed.span.parent is None
    assert observed.accounts[0].trace_id == trace.format_trace_id(observed.context.trace_id)


def test_caller_that_does_not_sample_has_no_span_here_either() -> None:
    observed = Observed()

    observed.chat(headers={"traceparent": NOT_SAMPLED})

    assert observed.exporter.get_finished_spans() == ()
    assert observed.accounts[0].trace_id == TRACE


def test_span_is_current_for_its_request_and_for_no_other() -> None:
    observed = Observed()
    found: list[int] = []

    @observed.app.post("/tokenize")
    async def tokenize() -> None:
        found.append(trace.get_current_span().get_span_context().span_id)

    observed.chat()
    observed.chat()
    TestClient(observed.app).post("/tokenize")

    traces = {span.context.trace_id for span in observed.exporter.get_finished_spans() if span.context}
    assert len(traces) == 2
    assert found == [0]
    assert not trace.get_current_span().get_span_context().is_valid


@pytest.mark.parametrize("engine_traces", [False, True])
def test_engine_that_traces_is_given_the_span_as_its_parent(engine_traces: bool) -> None:
    """vLLM takes the parent of its own span from the request's headers, and warns of any where it does not trace."""
    observed = Observed(engine_traces=engine_traces)
    found: list[str | None] = []

    class Asked(FakeEngine):
        async def route(self, request: Any, _raw_request: Request) -> Any:
            found.append(_raw_request.headers.get("traceparent"))
            return await super().route(request, _raw_request)

    observed.app = make_app(Asked([AGREED]), layers=[observed.layer])
    observed.chat()

    parent = f"00-{observed.context.trace_id:032x}-{observed.context.span_id:016x}"
    assert [told and told[:-3] for told in found] == [parent if engine_traces else None]


class Routed(Observed):
    """A request that its policy routes, and what the upstream was sent."""

    def __init__(
        self, script: Script, traced: bool = True, headers: dict[str, str] | None = None, **fields: Any
    ) -> None:
        super().__init__(FakeEngine([TORN]))
        with ScriptedUpstream([script]) as upstream:
            settings = UpstreamSettings(url=upstream.url, model="big", max_retries=0)
            observers, layers = [self.accounts.append], [self.layer] if traced else []
            self.app = make_app(
                self.engine, upstreams={"large": settings}, observers=observers, layers=layers
            )
            policy = {"action": "route", "metric": "max_epistemic", "threshold": 0.5}
            with TestClient(self.app) as http:
                body = {"model": ENSEMBLE, "messages": HELLO, "uncertainty": {"policy": policy}, **fields}
                self.text = http.post("/v1/chat/completions", json=body, headers=headers).text
            (self.sent,) = [request.headers for request in upstream.requests]


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_upstream_is_told_this_servers_span_as_the_parent(stream: bool) -> None:
    script = chat_stream("Yes", ".") if stream else answer(chat_answer("Yes."))

    routed = Routed(script, headers={"traceparent": SAMPLED, "tracestate": "vendor=x"}, stream=stream)

    assert routed.sent["traceparent"] == f"00-{TRACE}-{routed.context.span_id:016x}-01"
    assert routed.sent["tracestate"] == "vendor=x"
    assert routed.told["gen_ai.request.model"] == ENSEMBLE
    assert routed.told["gen_ai.response.model"] == "big-1"
    assert [event["gen_ai.evaluation.score.label"] for event in routed.events] == ["route"]


def test_upstream_hears_that_the_caller_does_not_sample() -> None:
    routed = Routed(answer(chat_answer("Yes.")), headers={"traceparent": NOT_SAMPLED})

    version, trace_id, span_id, flags = routed.sent["traceparent"].split("-")
    assert (version, trace_id, flags) == ("00", TRACE, "00")
    assert span_id != CALLER


@pytest.mark.parametrize("caller", [SAMPLED, NOT_SAMPLED])
def test_without_tracing_the_upstream_is_told_the_callers_span(caller: str) -> None:
    routed = Routed(answer(chat_answer("Yes.")), traced=False, headers={"traceparent": caller})

    assert routed.sent["traceparent"] == caller


def test_words_of_an_upstream_that_fails_are_in_no_span() -> None:
    refused = answer({"error": {"message": "I will not say a canary"}}, status=400)

    routed = Routed(refused)

    assert "canary" in routed.text
    (event,) = routed.events
    assert event["gen_ai.evaluation.explanation"] == "max_epistemic 0.60 > 0.50 at token 3"
    assert "canary" not in routed.span.to_json()


# Where spans go


class Collector:
    """A collector that keeps what it is sent."""

    def __init__(self) -> None:
        self.received: list[tuple[str, bytes]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                outer.received.append((self.path, body))
                self.send_response(200)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                return

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self._thread = threading.Thread(target=self.server.serve_forever)

    def __enter__(self) -> "Collector":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self._thread.join()
        self.server.server_close()


@pytest.fixture
def variables(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The environment, as OpenTelemetry reads it too."""
    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(name)
    given = {"OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf", "OTEL_BSP_SCHEDULE_DELAY": "3600000"}
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    return given


def provided(variables: dict[str, str], monkeypatch: pytest.MonkeyPatch, **more: str) -> TracerProvider:
    for name, value in more.items():
        monkeypatch.setenv(name, value)
    provider = tracer_provider({**variables, **more})
    assert provider is not None
    return provider


def test_spans_reach_a_collector_when_the_server_ends(
    variables: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with Collector() as collector:
        provider = provided(variables, monkeypatch, OTEL_EXPORTER_OTLP_ENDPOINT=collector.url)
        layer = partial(Traced, tracer=provider.get_tracer("softspec"))
        app = make_app(FakeEngine([AGREED]), layers=[layer])
        client_of(app).chat.completions.create(model=ENSEMBLE, messages=HELLO)
        asyncio.run(close_provider(provider))

    ((path, body),) = collector.received
    (sent,) = ExportTraceServiceRequest.FromString(body).resource_spans
    resource = {each.key: each.value.string_value for each in sent.resource.attributes}
    ((span,),) = [scope.spans for scope in sent.scope_spans]
    assert path == "/v1/traces"
    assert resource["service.name"] == "softspec"
    assert span.name == f"chat {ENSEMBLE}"
    assert [event.name for event in span.events] == ["gen_ai.evaluation.result"]


@pytest.mark.parametrize(
    "name", [{"OTEL_SERVICE_NAME": "law"}, {"OTEL_RESOURCE_ATTRIBUTES": "a=b,service.name=law"}]
)
def test_service_is_named_as_the_operator_names_it(
    variables: dict[str, str], monkeypatch: pytest.MonkeyPatch, name: dict[str, str]
) -> None:
    provider = provided(variables, monkeypatch, OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:9", **name)

    assert provider.resource.attributes["service.name"] == "law"
    asyncio.run(close_provider(provider))


@pytest.mark.parametrize(
    "environment", [{}, {"OTEL_EXPORTER_OTLP_ENDPOINT": ""}, {"OTEL_SERVICE_NAME": "law"}]
)
def test_without_a_collector_there_are_no_spans(environment: dict[str, str]) -> None:
    assert tracer_provider(environment) is None


def test_switch_of_opentelemetry_turns_spans_off() -> None:
    environment = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://localhost:4317", "OTEL_SDK_DISABLED": "true"}

    assert tracer_provider(environment) is None


def test_collector_is_spoken_to_in_grpc_unless_something_else_is_said(
    variables: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_PROTOCOL")

    provider = provided({}, monkeypatch, OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:9")

    (processor,) = provider._active_span_processor._span_processors
    assert "proto.grpc" in type(processor.span_exporter).__module__  # type: ignore[attr-defined]
    asyncio.run(close_provider(provider))


def test_protocol_that_nobody_speaks_ends_the_start() -> None:
    with pytest.raises(ConfigError, match="OTEL_EXPORTER_OTLP_PROTOCOL is 'http/json': expected grpc or"):
        engine_environment({"OTEL_EXPORTER_OTLP_PROTOCOL": "http/json"})


def test_engine_is_told_what_it_does_not_find_out_by_itself() -> None:
    """vLLM reads one variable of the protocol, and would be an unknown service."""
    protocol, service = "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_SERVICE_NAME"

    assert engine_environment({}) == {protocol: "grpc", service: "softspec"}
    assert engine_environment({"OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf", service: "law"}) == {
        protocol: "http/protobuf"
    }


@pytest.mark.vllm
def test_engine_is_asked_within_the_span_where_vllm_traces_too(tmp_path: Path) -> None:
    from tests.support.scripted_vllm import NAME, FakeAsyncLLM, serving

    ensemble = random_adapters(tiny_llama(tmp_path / "tiny-base"), tmp_path / NAME, num_members=2)
    asked: list[Any] = []

    class Asked(FakeAsyncLLM):
        def generate(self, *args: Any, trace_headers: Any = None, **kwargs: Any) -> Any:
            asked.append(trace_headers)
            return super().generate(*args, **kwargs)

    with Collector() as collector:
        endpoint = f"{collector.url}/v1/traces"
        with serving(
            ensemble,
            "--otlp-traces-endpoint",
            endpoint,
            engine_of=Asked,
            OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=endpoint,
            OTEL_EXPORTER_OTLP_TRACES_PROTOCOL="http/protobuf",
        ) as server:
            server.chat()
            server.run(close_provider(server.app.state.softspec_traces))

    ((_, body),) = collector.received
    (sent,) = ExportTraceServiceRequest.FromString(body).resource_spans
    (span,) = sent.scope_spans[0].spans
    (headers,) = [each for each in asked if each]
    assert f"-{span.span_id.hex()}-" in headers["traceparent"]


def test_collector_that_hangs_holds_up_neither_answers_nor_the_end(
    variables: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        more = {"OTEL_EXPORTER_OTLP_ENDPOINT": url, "OTEL_EXPORTER_OTLP_TIMEOUT": "1"}
        provider = provided(variables, monkeypatch, **more)
        layer = partial(Traced, tracer=provider.get_tracer("softspec"))
        client = client_of(make_app(FakeEngine([AGREED]), layers=[layer]))
        began = time.monotonic()
        client.chat.completions.create(model=ENSEMBLE, messages=HELLO)
        answered = time.monotonic()
        asyncio.run(close_provider(provider, limit_s=0.2))
        closed = time.monotonic()

    assert answered - began < 2
    assert closed - answered < 2
