"""A streamed answer with its uncertainty: server-sent events in, server-sent events out.

In: vLLM's event stream and the trace that the engine fills meanwhile. Out: the same events with the
`uncertainty` field, ended early when the policy objects. Knows OpenAI's chunks; knows no FastAPI and no engine.
"""

import json
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing

from softspec.engine.trace import RequestTrace
from softspec.errors import SoftspecError
from softspec.maths.answer import summarise
from softspec.server.chat.replies import Observe, choice_trace, withdrawn
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
from softspec.server.ops.errors import error_body
from softspec.server.policy.running import RunningDecision

_PREFIX = "data: "
_DONE = "data: [DONE]\n\n"


class AnswerStream:
    """The choices of one streamed request; each is open until it finishes or abstains.

    `num_samples` is the request's n; `num_choices` n times its prompts. `hide_usage`: usage in every chunk
    was asked for by us, to know the prompt's length when the stream ends early, and not by the caller.
    """

    def __init__(
        self,
        trace: RequestTrace,
        terms: Terms,
        *,
        num_choices: int,
        num_samples: int,
        hide_usage: bool,
        decode: DecodeToken,
        observe: Observe,
        observe_first_token: Callable[[], None],
    ) -> None:
        self._trace = trace
        self._terms = terms
        self._num_samples = num_samples
        self._hide_usage = hide_usage
        self._decode = decode
        self._observe = observe
        self._observe_first_token = observe_first_token
        self._open = set(range(num_choices))
        self._running: dict[int, RunningDecision] = {}
        self._messages = [Message() for _ in self._open]
        self._prompt_tokens: dict[int, int] = {}
        self._has_abstained = False
        self._has_token = False

    async def events(self, upstream: AsyncGenerator[str, None]) -> AsyncGenerator[str, None]:
        """Rewrite the upstream's events; closing it aborts the request in the engine."""
        async with aclosing(upstream):
            try:
                async for event in upstream:
                    if not event.startswith(_PREFIX) or event == _DONE:
                        yield event
                        continue
                    chunk = json.loads(event.removeprefix(_PREFIX))
                    for rewritten in self._rewrite(chunk):
                        yield _event(rewritten)
                    if self._has_abstained and not self._open:
                        for last in self._closing_usage(chunk):
                            yield _event(last)
                        yield _DONE
                        return
            except SoftspecError as error:
                yield _event(error_body(error))
                yield _DONE

    def _rewrite(self, chunk: Json) -> Iterator[Json]:
        """The chunk with its `uncertainty`; none when all it has belongs to choices that were ended."""
        if not chunk.get("choices"):
            yield chunk
            return
        if "usage" in chunk:
            self._note_usage(chunk)
        choices = [self._annotate(choice) for choice in chunk["choices"] if choice["index"] in self._open]
        if choices:
            yield {**chunk, "choices": choices}

    def _note_usage(self, chunk: Json) -> None:
        if chunk["usage"] is not None:
            prompt = chunk["choices"][0]["index"] // self._num_samples
            self._prompt_tokens[prompt] = chunk["usage"]["prompt_tokens"]
        if self._hide_usage:
            del chunk["usage"]

    def _annotate(self, choice: Json) -> Json:
        if _opens_message(choice):
            return choice
        index = choice["index"]
        running = self._running_decision(index)
        new_tokens = running.catch_up()
        if new_tokens and not self._has_token:
            self._has_token = True
            self._observe_first_token()
        if running.decision.action == "abstain":
            self._has_abstained = True
            return {**withdrawn(choice, running.decision), EXTENSION: self._end(index, running)}
        if self._terms.fields:
            self._messages[index].add(choice)
        report = self._end(index, running) if choice.get("finish_reason") else {}
        if self._terms.detail == "tokens" and new_tokens:
            report["tokens"] = token_reports(new_tokens, self._decode)
        return {**choice, EXTENSION: report} if report else choice

    def _running_decision(self, index: int) -> RunningDecision:
        if index not in self._running:
            self._running[index] = RunningDecision(self._terms.policy, choice_trace(self._trace, index))
        return self._running[index]

    def _end(self, index: int, running: RunningDecision) -> Json:
        self._open.discard(index)
        trace, tokens = self._trace.choices[index], running.tokens()
        self._observe(running.decision, summarise(tokens, trace.log_weights, trace.weights_rule))
        report = full_report(trace, tokens, running.decision, self._terms.detail)
        if self._terms.fields and running.decision.action == "answer":
            report["fields"] = field_reports(self._messages[index], tokens, trace, self._decode)
        return report

    def _closing_usage(self, chunk: Json) -> Iterator[Json]:
        """The chunk that tells the usage, in place of vLLM's last, which an ended stream does not reach."""
        if self._prompt_tokens:
            prompt = sum(self._prompt_tokens.values())
            completion = sum(len(choice.tokens) for choice in self._trace.choices.values())
            usage = {
                "prompt_tokens": prompt,
                "total_tokens": prompt + completion,
                "completion_tokens": completion,
            }
            yield {
                **{key: chunk[key] for key in ("id", "object", "created", "model")},
                "choices": [],
                "usage": usage,
            }


def _opens_message(choice: Json) -> bool:
    """Whether this is a chat's first chunk, which names the role; the text of the first token comes with the next."""
    delta = choice.get("delta", {})
    return set(delta) == {"role", "content"} and not delta["content"] and not choice.get("finish_reason")


def _event(chunk: Json) -> str:
    return f"{_PREFIX}{json.dumps(chunk, ensure_ascii=False, separators=(',', ':'))}\n\n"
