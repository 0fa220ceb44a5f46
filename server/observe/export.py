"""Where spans go: to the collector that OpenTelemetry's own variables name, or nowhere.

In: the environment. Out: a provider of tracers that exports in a thread of its own, until it is closed. A collector
that is slow or gone costs spans, never answers.
"""

import asyncio
import threading
from collections.abc import Mapping

from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter

from softspec.errors import ConfigError

ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
PROTOCOL_OF_TRACES = "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"
PROTOCOL = "OTEL_EXPORTER_OTLP_PROTOCOL"
PROTOCOLS = ("grpc", "http/protobuf")
SERVICE = "OTEL_SERVICE_NAME"
CLOSING_S = 5.0
"""How long the last spans may take when the server ends."""


def tracer_provider(environment: Mapping[str, str]) -> TracerProvider | None:
    """The provider, if a collector is configured; what else the variables say is read by OpenTelemetry itself.

    Raises:
        ConfigError: the protocol is not known.
    """
    is_off = environment.get("OTEL_SDK_DISABLED", "").lower() == "true"
    if is_off or not any(environment.get(name) for name in ENDPOINTS):
        return None
    ours = engine_environment(environment)
    resource = Resource.create({SERVICE_NAME: ours[SERVICE]} if SERVICE in ours else None)
    # Its own shutdown at exit may wait for half a minute.
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(_exporter(protocol_of(environment))))
    return provider


def protocol_of(environment: Mapping[str, str]) -> str:
    """What the collector speaks; gRPC unless something else is said, as for vLLM's own spans.

    Raises:
        ConfigError: nobody here speaks it.
    """
    variable = PROTOCOL_OF_TRACES if environment.get(PROTOCOL_OF_TRACES) else PROTOCOL
    protocol = environment.get(variable) or PROTOCOLS[0]
    if protocol not in PROTOCOLS:
        raise ConfigError(f"{variable} is '{protocol}': expected {' or '.join(PROTOCOLS)}")
    return protocol


def engine_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables by which vLLM's spans come from the same service, and go to the collector in its language.

    Raises:
        ConfigError: as `protocol_of`.
    """
    # vLLM reads no other variable for it.
    variables = {PROTOCOL_OF_TRACES: protocol_of(environment)}
    if not environment.get(SERVICE) and "service.name=" not in environment.get(
        "OTEL_RESOURCE_ATTRIBUTES", ""
    ):
        variables[SERVICE] = "softspec"
    return variables


async def close_provider(provider: TracerProvider, limit_s: float = CLOSING_S) -> None:
    """Send what is left, and wait no longer than this; no span is taken afterwards."""
    # A daemon, which an export that hangs does not keep alive.
    thread = threading.Thread(target=provider.shutdown, name="softspec-traces", daemon=True)
    thread.start()
    await asyncio.to_thread(thread.join, limit_s)


def _exporter(protocol: str) -> SpanExporter:
    # Imported here: gRPC is heavy, and either is needed only by who uses it.
    if protocol == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GrpcExporter

        return GrpcExporter()
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as HttpExporter

    return HttpExporter()
