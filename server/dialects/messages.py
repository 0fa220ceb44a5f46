"""Anthropic's Messages: a whole message with its verdict, and errors in Anthropic's envelope.

In: vLLM's request model, or the JSON of its message. Out: the same with `uncertainty`. A withheld message has
Anthropic's own `stop_reason` for it, and no content: a text in its place would be parsed, or taken for the answer.
"""

from typing import Any

from softspec.errors import SoftspecError
from softspec.server.chat.replies import refusal_of
from softspec.server.chat.wire import EXTENSION, Json
from softspec.server.dialects.dialect import with_system
from softspec.server.dialects.message_events import MessageEvents, error_envelope, refused
from softspec.server.policy.policy import Decision


class Messages:
    """The dialect of `/v1/messages`."""

    path = "/v1/messages"

    def prepare(self, request: Any) -> None:
        """Nothing that this API can ask is beyond one judged generation."""

    def annotated(self, body: Json, decision: Decision, report: Json) -> Json:
        """The message with its `uncertainty`."""
        if decision.action == "abstain":
            body = {**body, "content": [], **refused(refusal_of(decision))}
        return {**body, EXTENSION: report}

    def events(self, request: Any) -> MessageEvents:
        """The events of a streamed message."""
        output = request.output_config
        return MessageEvents(is_parsed=output is not None and output.format is not None)

    def conversation(self, body: Json) -> Json:
        """The system's text and the messages."""
        return {**body, "messages": with_system(body["messages"], body.get("system"))}

    def error_body(self, error: SoftspecError) -> Json:
        """Anthropic's envelope."""
        return error_envelope(error)
