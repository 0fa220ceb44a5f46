"""A streamed answer with its uncertainty: server-sent events in, server-sent events out.

In: vLLM's event stream, the trace that the engine fills meanwhile, and an upstream's chunks in place of a choice that
is routed. Out: the events with the `uncertainty` field, ended early when the policy objects. Knows OpenAI's chunks;
knows no FastAPI and no engine.
"""

import json
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from softspec.engine.trace import RequestTrace
from softspec.errors import SoftspecError, UpstreamError
from softspec.server.chat.assembly import Assembly
from softspec.server.chat.forwarding import Forwarded, Forwarding
from softspec.server.chat.merged import ENDED, Merged
from softspec.server.chat.replies import Outcome, Settled, withdrawn, without_upstream
from softspec.server.chat.streamed_choice import Phase, Piece, StreamedChoice
from softspec.server.chat.usage import StreamUsage
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
from softspec.server.observe.account import note_error
from softspec.server.ops.errors import error_body

_PREFIX = "data: "
_DONE = "data: [DONE]\n\n"
_ENSEMBLE = -1
"""The ensemble's number among the streams; an upstream's is the index of the choice that it answers."""


class AnswerStream:
    """The choices of one streamed request; each is open until it finishes, abstains or was answered elsewhere."""

    def __init__(
        self,
        trace: RequestTrace,
        terms: Terms,
        forwarding: Forwarding,
        usage: StreamUsage,
        *,
        num_choices: int,
        decode: DecodeToken,
        settled: Settled,
        observe_first_token: Callable[[], None],
    ) -> None:
        self._terms = terms
        self._forwarding = forwarding
        self._usage = usage
        self._decode = decode
        self._settled = settled
        self._observe_first_token: Callable[[], None] | None = observe_first_token
        self._choices = [StreamedChoice(index, terms.policy, trace) for index in range(num_choices)]
        self._open = set(range(num_choices))
        self._messages = [Message() for _ in range(num_choices)]
        self._answers: dict[int, Assembly] = {}
        self._sources = Merged()
        self._models: dict[int, str] = {}
        self._head: Json = {}
        self._ends_early = False
        self._has_failed = False

    async def events(self, ensemble: AsyncGenerator[str, None]) -> AsyncGenerator[str, None]:
        """Rewrite the ensemble's events; closing it aborts the request in the engine and at the upstreams."""
        self._sources.add(_ENSEMBLE, ensemble)
        async with aclosing(self._sources), aclosing(self._sources.items()) as items:
            try:
                async for source, item in items:
                    for event in self._events(source, item):
                        yield event
                    if self._ends_early and not self._open:
                        return
            except SoftspecError as error:
                note_error(type(error).__name__)
                yield _event(error_body(error))
                yield _DONE

    def _events(self, source: int, item: Any) -> Iterator[str]:
        """What is sent for one item of one source; the last time also the end, if that is not the ensemble's own."""
        if source == _ENSEMBLE:
            yield from self._of_ensemble(item)
        else:
            yield from map(_event, self._of_upstream(self._choices[source], item))
        if self._ends_early and not self._open:
            if not self._has_failed:
                yield from map(_event, self._usage.closing(self._head, self._models.get(0)))
            yield _DONE

    def _of_ensemble(self, event: Any) -> Iterator[str]:
        if event is ENDED or (event == _DONE and self._ends_early):
            return
        if event == _DONE or not event.startswith(_PREFIX):
            yield event
            return
        chunk = json.loads(event.removeprefix(_PREFIX))
        if chunk.get("choices"):
            yield from map(_event, self._of_chunk(chunk))
        elif "error" in chunk:
            self._has_failed = self._ends_early = True
            self._open.clear()
            note_error(chunk["error"].get("type", "error"))
            yield event
        elif self._ends_early:
            self._usage.ensemble = chunk.get("usage")
        else:
            yield _event(chunk)

    def _of_chunk(self, chunk: Json) -> Iterator[Json]:
        self._head = self._head or {key: chunk[key] for key in ("id", "object", "created", "model")}
        self._usage.note(chunk)
        for choice in chunk["choices"]:
            one = self._choices[choice["index"]]
            if one.phase in (Phase.ROUTED, Phase.OVER) or (one.phase == Phase.ASKED and not self._keeps):
                continue
            was_judged = one.phase == Phase.JUDGED
            for piece in one.take(_with_choice(chunk, choice), choice):
                yield self._told(one, piece)
            if was_judged and one.decision.action == "abstain":
                yield from self._withdraw(one)
            elif was_judged and one.decision.action == "route":
                self._ask_upstream(one)

    @property
    def _keeps(self) -> bool:
        """Whether an answer that is routed goes on in the engine, to be sent if the upstream fails."""
        return self._terms.policy.on_failure == "answer"

    def _told(self, one: StreamedChoice, piece: Piece) -> Json:
        """A piece of the ensemble's own answer as it is sent."""
        if piece.tokens:
            self._first_token()
        if self._terms.fields:
            self._messages[one.index].add(piece.choice)
        report = self._end(one) if piece.is_last else {}
        if self._terms.detail == "tokens" and piece.tokens:
            report["tokens"] = token_reports(piece.tokens, self._decode)
        return _with_choice(piece.chunk, {**piece.choice, EXTENSION: report}) if report else piece.chunk

    def _withdraw(self, one: StreamedChoice) -> Iterator[Json]:
        """The end of a choice that abstains."""
        assert one.withheld is not None
        self._first_token()
        self._ends_early = True
        for piece in one.drop():
            yield piece.chunk
        refusal = {**withdrawn(one.withheld.choice, one.decision), EXTENSION: self._end(one)}
        yield _with_choice(one.withheld.chunk, refusal)

    def _ask_upstream(self, one: StreamedChoice) -> None:
        one.phase = Phase.ASKED
        self._ends_early = True
        name = self._terms.policy.upstream
        assert name is not None
        self._sources.add(one.index, self._forwarding.stream(name, one.index))

    def _of_upstream(self, one: StreamedChoice, item: Any) -> Iterator[Json]:
        """What is sent for a chunk of the upstream's, its error or its end."""
        if item is ENDED:
            if one.phase == Phase.ROUTED:
                self._close(one)
        elif not isinstance(item, UpstreamError):
            if one.phase == Phase.ASKED:
                one.phase = Phase.ROUTED
                one.decision = replace(one.decision, upstream=self._terms.policy.upstream)
                one.drop()
            yield from self._passed_on(one, item)
        elif one.phase == Phase.ROUTED:
            raise item
        else:
            yield from self._without_upstream(one, item)

    def _passed_on(self, one: StreamedChoice, chunk: Json) -> Iterator[Json]:
        """An upstream's chunk as one of ours; its usage goes into ours."""
        self._first_token()
        name = self._terms.policy.upstream or ""
        self._models[one.index] = self._forwarding.model_of(name, chunk)
        usage = self._usage.of_upstream(one.index, chunk, len(one.tokens))
        if not chunk["choices"]:
            return
        choice = {**chunk["choices"][0], "index": one.index}
        answer = self._answers.setdefault(one.index, Assembly())
        answer.add(choice)
        if choice.get("finish_reason"):
            choice[EXTENSION] = self._report(one, Forwarded(answer.choice(), self._models[one.index], None))
        head = {**self._head, "model": self._models[one.index]}
        yield {**chunk, **head, "choices": [choice], **usage}

    def _without_upstream(self, one: StreamedChoice, error: UpstreamError) -> Iterator[Json]:
        """What is sent when the upstream failed before it sent anything."""
        one.decision = without_upstream(one.decision, error, self._terms.policy)
        if not self._keeps:
            yield from self._withdraw(one)
            return
        one.phase = Phase.KEPT
        for piece in one.release():
            yield self._told(one, piece)

    def _end(self, one: StreamedChoice) -> Json:
        report = self._report(one, None)
        self._close(one)
        return report

    def _report(self, one: StreamedChoice, forwarded: Forwarded | None) -> Json:
        self._settled(Outcome(one.index, one.trace, one.tokens, one.decision, forwarded))
        report = full_report(one.trace, one.tokens, one.decision, self._terms.detail)
        if self._terms.fields and one.decision.action == "answer":
            report["fields"] = field_reports(self._messages[one.index], one.tokens, one.trace, self._decode)
        return report

    def _close(self, one: StreamedChoice) -> None:
        one.phase = Phase.OVER
        self._open.discard(one.index)

    def _first_token(self) -> None:
        if self._observe_first_token is not None:
            self._observe_first_token()
            self._observe_first_token = None


def _with_choice(chunk: Json, choice: Json) -> Json:
    return {**chunk, "choices": [choice]}


def _event(chunk: Json) -> str:
    return f"{_PREFIX}{json.dumps(chunk, ensure_ascii=False, separators=(',', ':'))}\n\n"
