"""A streamed answer in any dialect with its uncertainty: server-sent events in, server-sent events out.

In: vLLM's event stream and the trace that the engine fills meanwhile. Out: the same events with the verdict; after the
token at which the policy objects, nothing of the answer. vLLM's stream is read to its end all the same: the engine ends
the answer at that token, and the last events tell the usage. Knows the dialect by its `Events`.
"""

import json
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing

from softspec.engine.trace import ChoiceTrace, RequestTrace, traced
from softspec.errors import EngineError, SoftspecError
from softspec.maths.answer import TokenUncertainty
from softspec.server.chat.replies import Outcome, Settled, choice_trace
from softspec.server.chat.wire import EXTENSION, DecodeToken, Json, Terms, full_report, token_reports
from softspec.server.dialects.dialect import Events
from softspec.server.observe.account import note_error
from softspec.server.policy.running import RunningDecision, held_of

_DATA = "data: "


class JudgedStream:
    """One streamed answer: told as it comes until it ends or the policy objects."""

    def __init__(
        self,
        trace: RequestTrace,
        terms: Terms,
        events: Events,
        *,
        decode: DecodeToken,
        settled: Settled,
        observe_first_token: Callable[[], None],
    ) -> None:
        self._trace = trace
        self._terms = terms
        self._events = events
        self._decode = decode
        self._settled = settled
        self._observe_first_token = observe_first_token
        self._running: RunningDecision | None = None
        self._is_withdrawn = False
        self._untold: list[TokenUncertainty] = []
        self._held: list[Json] = []

    async def rewrite(self, upstream: AsyncGenerator[str, None]) -> AsyncGenerator[str, None]:
        """The upstream's events with the verdict; closing it aborts the request in the engine."""
        async with aclosing(traced(upstream, self._trace)) as texts:
            try:
                async for text in texts:
                    event = _parsed(text)
                    if event is None:
                        yield text
                        continue
                    for rewritten in self._rewrite(event):
                        yield _written(rewritten)
            except SoftspecError as error:
                note_error(type(error).__name__)
                yield _written(self._events.failure(error))

    def _rewrite(self, event: Json) -> Iterator[Json]:
        events = self._events
        if events.precedes(event) or events.follows(event):
            yield events.passed(event)
            return
        running, is_last = self._judge(), events.concludes(event)
        if running.decision.action != "answer" and not self._is_withdrawn:
            self._is_withdrawn = True
            self._held.clear()
            yield from events.withdrawal(running.decision)
        if is_last:
            event = self._concluded(event, running)
        elif self._is_withdrawn:
            return
        if not self._is_withdrawn and (is_last or event["type"].endswith("delta")):
            event = self._with_tokens(event)
        self._held.append(event)
        if is_last or running.num_tokens >= held_of(self._terms.policy):
            held, self._held = self._held, []
            yield from map(events.passed, held)

    def _judge(self) -> RunningDecision:
        trace = only_choice(self._trace)
        if self._running is None:
            self._running = RunningDecision(self._terms.policy, trace)
        is_first = not self._running.num_tokens
        new_tokens = self._running.catch_up()
        if is_first and new_tokens:
            self._observe_first_token()
        self._untold += new_tokens
        return self._running

    def _concluded(self, event: Json, running: RunningDecision) -> Json:
        outcome = Outcome(0, self._trace.choices[0], running.tokens(), running.decision)
        self._settled(outcome)
        return self._events.conclusion(event, outcome.decision, report_on(outcome, self._terms, self._decode))

    def _with_tokens(self, event: Json) -> Json:
        """The event with the numbers of the tokens since the last one that had any."""
        if self._terms.detail != "tokens" or not self._untold:
            return event
        tokens = token_reports(self._untold, self._decode)
        self._untold = []
        return {**event, EXTENSION: {**event.get(EXTENSION, {}), "tokens": tokens}}


def only_choice(trace: RequestTrace) -> ChoiceTrace:
    """What the engine measured for an answer that it gave at once.

    Raises:
        EngineError: it was asked several times for one answer, or measured nothing.
    """
    if len(trace.choices) > 1:
        raise EngineError(
            f"the engine was asked {len(trace.choices)} times for one answer, of which one is judged: report this with "
            "the request's fields"
        )
    return choice_trace(trace, 0)


def report_on(outcome: Outcome, terms: Terms, decode: DecodeToken) -> Json:
    """The `uncertainty` of an answer that is over; of a withheld one without its tokens."""
    report = full_report(outcome.trace, outcome.tokens, outcome.decision, terms.detail)
    if terms.detail == "tokens" and outcome.decision.action == "answer":
        report["tokens"] = token_reports(outcome.tokens, decode)
    return report


def _parsed(text: str) -> Json | None:
    """The JSON of one server-sent event; None if it has none."""
    _, found, data = text.partition(_DATA)
    return json.loads(data) if found and data.startswith("{") else None


def _written(event: Json) -> str:
    body = json.dumps(event, ensure_ascii=False, separators=(",", ":"))
    return f"event: {event['type']}\n{_DATA}{body}\n\n"
