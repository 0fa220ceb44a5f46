"""Which trace a request belongs to, as its caller says by W3C's headers.

In: headers. Out: the id of a trace, if it can be read.
"""

from collections.abc import Mapping

from opentelemetry import trace
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

_W3C = TraceContextTextMapPropagator()


def trace_id_of(headers: Mapping[str, str]) -> str | None:
    """The trace that a caller's request belongs to, if it says so in a way that can be read."""
    caller = trace.get_current_span(_W3C.extract(headers)).get_span_context()
    return trace.format_trace_id(caller.trace_id) if caller.is_valid else None
