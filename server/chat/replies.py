"""The `uncertainty` field added to OpenAI choices, and choices that abstain.

In: JSON of vLLM's response, the engine's trace and the caller's terms. Out: the JSON to send. An abstaining
choice carries nothing of its answer: no text, tool calls, log-probabilities, token ids or per-token numbers. It has the
shape of a refusal by OpenAI's own models, which every client reads.
"""

from collections.abc import Callable

from softspec.engine.trace import ChoiceTrace, RequestTrace
from softspec.errors import EngineError
from softspec.maths.answer import AnswerUncertainty, summarise
from softspec.server.chat.wire import (
    EXTENSION,
    DecodeToken,
    Json,
    Terms,
    field_reports,
    full_report,
    token_reports,
)
from softspec.server.fields.message import Message
from softspec.server.policy.policy import Decision
from softspec.server.policy.running import RunningDecision

Observe = Callable[[Decision, AnswerUncertainty], None]


def annotate_body(
    body: Json, trace: RequestTrace, terms: Terms, decode: DecodeToken, observe: Observe
) -> Json:
    """A response that is not streamed, with `uncertainty` in every choice."""
    choices = [
        annotate_choice(choice, choice_trace(trace, choice["index"]), terms, decode, observe)
        for choice in body["choices"]
    ]
    return {**body, "choices": choices}


def annotate_choice(
    choice: Json, trace: ChoiceTrace, terms: Terms, decode: DecodeToken, observe: Observe
) -> Json:
    """One finished choice with its `uncertainty`, whose numbers are those of the prefix that was judged."""
    running = RunningDecision(terms.policy, trace)
    tokens, decision = running.catch_up(), running.decision
    observe(decision, summarise(tokens, trace.log_weights, trace.weights_rule))
    report = full_report(trace, tokens, decision, terms.detail)
    if decision.action == "abstain":
        return {**withdrawn(choice, decision), EXTENSION: report}
    if terms.detail == "tokens":
        report["tokens"] = token_reports(tokens, decode)
    if terms.fields:
        report["fields"] = field_reports(Message().add(choice), tokens, trace, decode)
    return {**choice, EXTENSION: report}


def withdrawn(choice: Json, decision: Decision) -> Json:
    """The choice without its answer; HTTP stays 200, as for a refusal of the model itself."""
    refusal = f"No answer: the models behind this one are too uncertain ({decision.reason})."
    empty: Json = {
        **dict.fromkeys(choice),
        "index": choice["index"],
        "finish_reason": "stop",
        "stop_reason": "abstained",
    }
    if "message" in choice:
        message = {key: None for key in choice["message"] if key != "tool_calls"}
        empty["message"] = {**message, "role": choice["message"]["role"], "content": None, "refusal": refusal}
    elif "delta" in choice:
        empty["delta"] = {"refusal": refusal}
    else:
        empty["text"] = ""
    return empty


def choice_trace(trace: RequestTrace, index: int) -> ChoiceTrace:
    """What the engine measured for one choice.

    Raises:
        EngineError: nothing was measured, so the answer did not come from the mixture.
    """
    if index not in trace.choices:
        raise EngineError(
            f"the engine sent no uncertainty for choice {index}: report this with the request's fields"
        )
    return trace.choices[index]
