"""The events of a streamed response of OpenAI's Responses, with its verdict.

In: the JSON of vLLM's events. Out: the events to send, numbered without a gap. Where an answer is withheld, the item
that is open is closed as incomplete and empty, so that nobody parses half a JSON or runs half a call, and a refusal
follows as an item of its own.
"""

from collections.abc import Sequence

from softspec.errors import SoftspecError
from softspec.server.chat.replies import refusal_of
from softspec.server.chat.wire import Json
from softspec.server.dialects.response_body import refusal_item, with_report, withheld
from softspec.server.ops.errors import error_body, error_status
from softspec.server.policy.policy import Decision

_BEGINNINGS = ("response.created", "response.in_progress")
_ENDS = ("response.completed", "response.incomplete")


class ResponseEvents:
    """The events of one response."""

    def __init__(self) -> None:
        self._sent = 0
        self._num_items = 0
        self._open_item: Json | None = None
        self._open_part: Json | None = None
        self._refusal: Json | None = None

    def precedes(self, event: Json) -> bool:
        """Whether it only says that the response begins."""
        return event["type"] in _BEGINNINGS

    def concludes(self, event: Json) -> bool:
        """Whether it brings the whole response."""
        return event["type"] in _ENDS

    def follows(self, event: Json) -> bool:
        """Whether it is an error."""
        return event["type"] in ("error", "response.failed")

    def passed(self, event: Json) -> Json:
        """The event with its place in the stream."""
        self._note(event)
        event = {**event, "sequence_number": self._sent}
        self._sent += 1
        return event

    def withdrawal(self, decision: Decision) -> Sequence[Json]:
        """The end of the item that is open, and a message that refuses."""
        ends = self._ends_of_the_open()
        sentence = refusal_of(decision)
        self._refusal = refusal_item(sentence)
        item = {"output_index": self._num_items + bool(ends)}
        part = {**item, "item_id": self._refusal["id"], "content_index": 0}
        begun = {**self._refusal, "status": "in_progress", "content": []}
        refused = self._refusal["content"][0]
        events: list[Json] = [
            {"type": "response.output_item.added", **item, "item": begun},
            {"type": "response.content_part.added", **part, "part": {"type": "refusal", "refusal": ""}},
            {"type": "response.refusal.delta", **part, "delta": sentence},
            {"type": "response.refusal.done", **part, "refusal": sentence},
            {"type": "response.content_part.done", **part, "part": refused},
            {"type": "response.output_item.done", **item, "item": self._refusal},
        ]
        return [self.passed(event) for event in (*ends, *events)]

    def conclusion(self, event: Json, _decision: Decision, report: Json) -> Json:
        """The event whose response has the verdict."""
        response = event["response"]
        if self._refusal is not None:
            event = {**event, "type": "response.completed"}
            response = withheld(response, self._refusal)
        return {**event, "response": with_report(response, report)}

    def failure(self, error: SoftspecError) -> Json:
        """The error event of this API."""
        told = error_body(error)["error"]
        code = "invalid_request_error" if error_status(error) < 500 else "server_error"
        return self.passed(
            {"type": "error", "code": code, "message": told["message"], "param": told["param"]}
        )

    def _note(self, event: Json) -> None:
        if event["type"] == "response.output_item.added":
            self._open_item = event["item"]
        elif event["type"] == "response.output_item.done":
            self._open_item = None
            self._num_items += 1
        elif event["type"] == "response.content_part.added":
            self._open_part = {key: event[key] for key in ("item_id", "content_index", "part")}
        elif event["type"] == "response.content_part.done":
            self._open_part = None

    def _ends_of_the_open(self) -> list[Json]:
        if self._open_item is None:
            return []
        place = {"output_index": self._num_items}
        part = [] if self._open_part is None else [{**place, **self._open_part}]
        item = {**place, "item": {**self._open_item, "status": "incomplete"}}
        return [
            *({"type": "response.content_part.done", **each} for each in part),
            {"type": "response.output_item.done", **item},
        ]
