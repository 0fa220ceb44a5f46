"""OpenAI's Responses: which of its requests an ensemble can answer.

In: vLLM's request model. Out: the same, settled, or a refusal by name. The shapes of what is answered are in
`response_body.py` and `response_events.py`.
"""

from typing import Any

from softspec.errors import FieldError, SoftspecError
from softspec.server.chat.foreign import is_set
from softspec.server.chat.replies import refusal_of
from softspec.server.chat.wire import Json
from softspec.server.dialects.dialect import with_system
from softspec.server.dialects.response_body import refusal_item, with_report, withheld
from softspec.server.dialects.response_events import ResponseEvents
from softspec.server.ops.errors import error_body
from softspec.server.policy.policy import Decision

_REASONS = {
    "background": "an answer that nobody waits for would be kept where the policy is not followed; ask without it",
    "previous_response_id": "their answers are not stored; send the conversation as 'input'",
    "previous_input_messages": "only one family of models reads it; send the conversation as 'input'",
}
_OWN_TOOLS = ("function", "custom", "namespace")
"""Kinds of tools that the caller runs; those that the server runs would generate several times for one response."""


class Responses:
    """The dialect of `/v1/responses`."""

    path = "/v1/responses"

    def prepare(self, request: Any) -> None:
        """Refuse by name what one judged generation cannot give, and let vLLM store nothing.

        Raises:
            FieldError: it asks for that.
        """
        for field, reason in _REASONS.items():
            if is_set(getattr(request, field)):
                raise FieldError(field, f"'{field}' is not supported for ensembles: {reason}")
        for number, tool in enumerate(request.tools):
            if tool.type not in _OWN_TOOLS:
                raise FieldError(
                    f"tools.{number}.type",
                    f"tools of type '{tool.type}' are not supported for ensembles: expected one of "
                    f"{', '.join(_OWN_TOOLS)}, which the caller runs",
                )
        choice = request.tool_choice
        if not isinstance(choice, str) and choice.type not in _OWN_TOOLS:
            raise FieldError(
                "tool_choice",
                f"'tool_choice' of type '{choice.type}' is not supported for ensembles: name a function, or give "
                "'auto', 'required' or 'none'",
            )
        if request.top_logprobs and "message.output_text.logprobs" not in (request.include or ()):
            raise FieldError(
                "top_logprobs",
                "'top_logprobs' has no effect by itself: give 'include': [\"message.output_text.logprobs\"] too",
            )
        # vLLM would keep the answer as it was before it was judged, for whoever asks for it by its id.
        request.store = False
        if not isinstance(request.input, str):
            request.input = [_as_text(item) for item in request.input]

    def annotated(self, body: Json, decision: Decision, report: Json) -> Json:
        """The response with its `uncertainty`."""
        if decision.action == "abstain":
            body = withheld(body, refusal_item(refusal_of(decision)))
        return with_report(body, report)

    def events(self, _request: Any) -> ResponseEvents:
        """The events of a streamed response."""
        return ResponseEvents()

    def conversation(self, body: Json) -> Json:
        """Instructions and input as messages; items that are no messages as they are."""
        given = body["input"]
        turns = [{"role": "user", "content": given}] if isinstance(given, str) else given
        return {**body, "messages": with_system(turns, body.get("instructions"))}

    def error_body(self, error: SoftspecError) -> Json:
        """OpenAI's envelope."""
        return error_body(error)


def _as_text(item: Any) -> Any:
    """An item of the conversation so far; a refusal of ours as text, since vLLM reads nothing else in its place."""
    fields = item if isinstance(item, dict) else vars(item)
    parts = fields.get("content")
    if fields.get("role") != "assistant" or not isinstance(parts, list):
        return item
    parts = [part if isinstance(part, dict) else vars(part) for part in parts]
    if all(part.get("type") != "refusal" for part in parts):
        return item
    text = "\n".join(part.get("refusal") or part.get("text") or "" for part in parts)
    return {"type": "message", "role": "assistant", "content": text}
