"""The events of a streamed message of Anthropic's Messages, with its verdict.

In: the JSON of vLLM's events. Out: the events to send. The verdict comes with the `message_delta` event, which also
says why the message stopped.
"""

from collections.abc import Sequence

from softspec.errors import SoftspecError
from softspec.server.chat.replies import refusal_of
from softspec.server.chat.wire import EXTENSION, Json
from softspec.server.ops.errors import error_body, error_status
from softspec.server.policy.policy import Decision

_ERROR_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}


class MessageEvents:
    """The events of one message. `is_parsed`: clients parse a block of text as JSON when they are told that it ends."""

    def __init__(self, is_parsed: bool) -> None:
        self._is_parsed = is_parsed
        self._open: Json | None = None

    def precedes(self, event: Json) -> bool:
        """Whether it only says that the message begins."""
        return event["type"] in ("message_start", "ping")

    def concludes(self, event: Json) -> bool:
        """Whether it says why the message stopped."""
        return event["type"] == "message_delta"

    def follows(self, event: Json) -> bool:
        """Whether it is the last event."""
        return event["type"] in ("message_stop", "error")

    def passed(self, event: Json) -> Json:
        """The event as it is."""
        if event["type"] == "content_block_start":
            self._open = event
        elif event["type"] == "content_block_stop":
            self._open = None
        return event

    def withdrawal(self, _decision: Decision) -> Sequence[Json]:
        """The end of the block that is open, unless its text would be parsed."""
        block, self._open = self._open, None
        if block is None or (self._is_parsed and block["content_block"]["type"] == "text"):
            return []
        return [{"type": "content_block_stop", "index": block["index"]}]

    def conclusion(self, event: Json, decision: Decision, report: Json) -> Json:
        """The event with the verdict; the tokens came with the events before it."""
        if decision.action == "abstain":
            event = {**event, "delta": refused(refusal_of(decision))}
        return {**event, EXTENSION: {key: value for key, value in report.items() if key != "tokens"}}

    def failure(self, error: SoftspecError) -> Json:
        """The error event of this API, which is its envelope."""
        return error_envelope(error)


def refused(sentence: str) -> Json:
    """Why a withheld message stopped, in Anthropic's words."""
    details = {"type": "refusal", "category": None, "explanation": sentence}
    return {"stop_reason": "refusal", "stop_sequence": None, "stop_details": details}


def error_envelope(error: SoftspecError) -> Json:
    """One of our errors as Anthropic's clients know them."""
    kind = _ERROR_TYPES.get(error_status(error), "api_error")
    return {"type": "error", "error": {"type": kind, "message": error_body(error)["error"]["message"]}}
