"""The `uncertainty` field added to OpenAI choices, and choices that abstain or are answered elsewhere.

In: JSON of vLLM's response, the engine's trace and the caller's terms. Out: the JSON to send. A choice that is withheld
carries nothing of its answer: no text, tool calls, log-probabilities, token ids or per-token numbers. One that abstains
has the shape of a refusal by OpenAI's own models, which every client reads.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from softspec.engine.trace import ChoiceTrace, RequestTrace
from softspec.errors import EngineError, UpstreamError
from softspec.maths.answer import TokenUncertainty
from softspec.server.chat.forwarding import Forwarded
from softspec.server.chat.usage import with_upstream
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
from softspec.server.policy.policy import Decision, Policy
from softspec.server.policy.running import RunningDecision


@dataclass(frozen=True)
class Outcome:
    """What became of one choice: its tokens as far as they count, what was done, and who answered instead, if any."""

    index: int
    trace: ChoiceTrace
    tokens: Sequence[TokenUncertainty]
    decision: Decision
    forwarded: Forwarded | None = None


Settled = Callable[[Outcome], None]
"""Is told of every choice once."""


def judge_choices(body: Json, trace: RequestTrace, policy: Policy) -> list[Outcome]:
    """What the policy decides on every choice of a response that is not streamed."""
    return [judge_choice(choice["index"], trace, policy) for choice in body["choices"]]


def judge_choice(index: int, trace: RequestTrace, policy: Policy) -> Outcome:
    """What the policy decides on one choice that is over."""
    running = RunningDecision(policy, choice_trace(trace, index))
    tokens = running.catch_up()
    return Outcome(index, trace.choices[index], tokens, running.decision)


def settle(judged: Outcome, forwarded: Forwarded | UpstreamError, policy: Policy) -> Outcome:
    """What becomes of a choice to be routed, once its upstream has answered or failed.

    Raises:
        UpstreamError: it failed, and the policy says that this is an error.
    """
    if isinstance(forwarded, Forwarded):
        decision = replace(judged.decision, upstream=policy.upstream)
        return replace(judged, decision=decision, forwarded=forwarded)
    decision = without_upstream(judged.decision, forwarded, policy)
    tokens = judged.trace.tokens if decision.action == "answer" else judged.tokens
    return replace(judged, decision=decision, tokens=tokens)


def without_upstream(decision: Decision, error: UpstreamError, policy: Policy) -> Decision:
    """What is done in place of routing when the upstream failed.

    Raises:
        UpstreamError: the policy says that this is an error.
    """
    if policy.on_failure == "error":
        raise error
    return replace(decision, action=policy.on_failure, reason=f"{decision.reason}; {error}")


def annotate_body(body: Json, outcomes: Sequence[Outcome], terms: Terms, decode: DecodeToken) -> Json:
    """A response that is not streamed, with `uncertainty` in every choice; `model` is the first choice's."""
    by_index: Mapping[int, Outcome] = {outcome.index: outcome for outcome in outcomes}
    choices = [
        annotate_choice(choice, by_index[choice["index"]], terms, decode) for choice in body["choices"]
    ]
    forwarded = [outcome.forwarded for outcome in outcomes if outcome.forwarded is not None]
    if forwarded:
        usage = with_upstream(body.get("usage") or {}, [each.usage for each in forwarded])
        first = by_index[0].forwarded
        body = {**body, "model": first.model if first else body["model"], "usage": usage}
    return {**body, "choices": choices}


def annotate_choice(choice: Json, outcome: Outcome, terms: Terms, decode: DecodeToken) -> Json:
    """One finished choice with its `uncertainty`, whose numbers are those of the prefix that was judged."""
    report = full_report(outcome.trace, outcome.tokens, outcome.decision, terms.detail)
    if outcome.forwarded is not None:
        return {**outcome.forwarded.choice, "index": outcome.index, EXTENSION: report}
    if outcome.decision.action == "abstain":
        return {**withdrawn(choice, outcome.decision), EXTENSION: report}
    if terms.detail == "tokens":
        report["tokens"] = token_reports(outcome.tokens, decode)
    if terms.fields:
        report["fields"] = field_reports(Message().add(choice), outcome.tokens, outcome.trace, decode)
    return {**choice, EXTENSION: report}


def refusal_of(decision: Decision) -> str:
    """The sentence that stands in place of a withheld answer."""
    return f"No answer: the models behind this one are too uncertain ({decision.reason})."


def withdrawn(choice: Json, decision: Decision) -> Json:
    """The choice without its answer; HTTP stays 200, as for a refusal of the model itself."""
    refusal = refusal_of(decision)
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
