"""What is sent to an upstream: the caller's own request, as it came, but for what is between the caller and us.

In: the body and headers of a request. Out: those to send on. Knows no connection.
"""

from collections.abc import Collection, Mapping
from typing import Any

from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

Json = dict[str, Any]

OURS = ("uncertainty", "request_id", "priority", "cache_salt", "vllm_xargs")
"""Fields about this server: its numbers and policy, and the names, queue and cache of its engine."""
FORWARDED = ("traceparent", "tracestate", "x-request-id")
"""Headers of the caller that go on: by them a request is found in the logs of both. No other does, no key.

Where this server traces, its own span takes the place of the caller's in the first.
"""
LONGEST_HEADER = 512
VIA = "x-softspec-via"
"""Header with the ids of the softspec servers that a request was sent on by, in their order."""


def upstream_body(body: Json, model: str, stream: bool, drop_fields: Collection[str] = ()) -> Json:
    """The body to send: the caller's, with the upstream's model.

    Everything that the caller asked for stays, known to the upstream or not, unless `drop_fields` names it. A stream is
    asked for its usage, which its last chunk then carries; a whole answer has it anyway.
    """
    left_out = {*OURS, *drop_fields, "stream", "stream_options"}
    sent = {name: value for name, value in body.items() if name not in left_out}
    sent |= {"model": model, "stream": stream}
    if stream:
        options = body.get("stream_options")
        sent["stream_options"] = {**(options if isinstance(options, dict) else {}), "include_usage": True}
    return sent


def upstream_headers(headers: Mapping[str, str], server_id: str, stream: bool) -> dict[str, str]:
    """The headers to send, the key apart; `headers` are the caller's, their names in lower case."""
    sent = {name: headers[name] for name in FORWARDED if _can_be_sent(headers.get(name, ""))}
    TraceContextTextMapPropagator().inject(sent)
    sent[VIA] = ", ".join((*servers_before(headers), server_id))
    sent["content-type"] = "application/json"
    sent["accept"] = "text/event-stream" if stream else "application/json"
    if stream:
        sent["accept-encoding"] = "identity"  # a compressor holds tokens back
    return sent


def servers_before(headers: Mapping[str, str]) -> list[str]:
    """The ids of the softspec servers that sent this request on."""
    parts = (part.strip() for part in headers.get(VIA, "").split(","))
    return [part for part in parts if _can_be_sent(part)]


def _can_be_sent(value: str) -> bool:
    """Whether a header has this value, and one that every server takes: what a caller sends may be no ASCII."""
    return 0 < len(value) <= LONGEST_HEADER and value.isascii() and value.isprintable()
