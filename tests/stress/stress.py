"""Thousands of engine steps of mixed traffic, checked after every step, and answers checked by another road.

In: a base, ensembles and a seed. Out: a `Report`, or an AssertionError that names the seed.
"""

import random
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from vllm import SamplingParams
from vllm.outputs import CompletionOutput, RequestOutput
from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

from softspec.engine.front.translation import record
from softspec.engine.trace import ChoiceTrace
from softspec.engine.wire import NO_TOKEN_LEFT, GroupSpec
from tests.stress.engine import InProcessEngine
from tests.stress.oracle import Answer, Oracle
from tests.stress.traffic import Ask, Traffic
from tests.stress.watch import Watch

LONGEST_WAIT = 3000
"""Steps from a request's arrival to its end."""
PRINT_EVERY = 1000
"""Steps between two lines on what has been done so far."""
SWAP_EVERY = 60
"""Steps between two swaps of ensembles, on average; a swap waits until the one before it is over."""


@dataclass
class Report:
    """What a run did. `seen` counts the situations that came up."""

    steps: int = 0
    tokens: int = 0
    finished: int = 0
    aborted: int = 0
    checked: int = 0
    seconds: float = 0.0
    seen: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        lines = [
            f"{self.steps} steps, {self.tokens} lockstep tokens, {self.finished} answered, {self.aborted} aborted, "
            f"{self.checked} answers checked, {self.seconds:.0f} s, {self.tokens / self.seconds:.0f} tokens/s"
        ]
        return "\n".join([*lines, *(f"  {count:7d}  {what}" for what, count in sorted(self.seen.items()))])


@dataclass
class _Live:
    """A request that is in the engine. `inside` are the engine's ids of its n answers, `heard` what came of them."""

    ask: Ask
    inside: list[str]
    seed: int
    spec: GroupSpec | None
    born: int
    heard: list["_Heard"]
    ended: dict[int, CompletionOutput] = field(default_factory=dict)
    steps_in_state: int = 0


class _Heard:
    """One of a request's n answers as its client hears it, all at once or piece by piece."""

    def __init__(self) -> None:
        self.choice = ChoiceTrace()
        self.token_ids: list[int] = []
        self.text = ""
        self.top: list[Mapping[int, Any]] = []

    def hear(self, completion: CompletionOutput, ask: Ask, spec: GroupSpec | None) -> None:
        """Take an output of the engine, with its telemetry put aside as `EnsembleClient` does."""
        if spec is not None:
            record(completion, _sampling_params(ask), spec, self.choice)
        if ask.kind_of_output != RequestOutputKind.DELTA.name:
            self.token_ids, self.text, self.top = [], "", []
        self.token_ids += completion.token_ids
        self.text += completion.text
        self.top += completion.logprobs or []

    def answer(self, completion: CompletionOutput, ask: Ask, seed: int) -> Answer:
        """What it was, now that it is finished; `completion` is its last output."""
        return Answer(
            token_ids=self.token_ids,
            text=self.text,
            finish_reason=str(completion.finish_reason),
            stop_reason=completion.stop_reason,
            seed=seed + completion.index,
            tokens=self.choice.tokens,
            watched=self.choice.watched,
            top=None if ask.settings.get("logprobs") is None else self.top,
        )


class StressTest:
    """Runs traffic through one engine.

    swaps: two ensembles of the same K, of which the engine holds the first; now and then the other one takes the place
        of the one that serves. check_every: one in so many answers is compared with the oracle.
    """

    def __init__(
        self,
        engine: InProcessEngine,
        traffic: Traffic,
        oracle: Oracle,
        swaps: dict[str, Path],
        check_every: int = 1,
    ) -> None:
        self.engine, self.traffic, self.oracle, self.swaps = engine, traffic, oracle, swaps
        self.check_every = check_every
        self._serving, self._other = swaps
        self._leaving = False
        torch.manual_seed(0)  # the base's own draws
        self.watch = Watch(engine)
        self.report = Report(seen=self.watch.seen)
        self._live: dict[str, _Live] = {}
        self._submitted = 0
        self._draws = random.Random(traffic.seed)

    def run(self, steps: int = 0, tokens: int = 0) -> Report:
        """At least so many steps and lockstep tokens, then everything is brought to its end."""
        started = time.monotonic()
        try:
            while self.report.steps < steps or self.watch.lockstep_tokens < tokens:
                self._swap()
                for ask in self.traffic.arrivals(len(self._live)):
                    self._submit(ask)
                self._step()
                if self.report.steps % PRINT_EVERY == 0:
                    self._note_progress(started)
                    print(str(self.report).splitlines()[0], flush=True)
            while self._live:
                self._step()
        except BaseException as error:
            error.add_note(f"seed {self.traffic.seed}, step {self.report.steps}")
            raise
        finally:
            self.watch.close()
        self._note_progress(started)
        return self.report

    def _note_progress(self, started: float) -> None:
        self.report.tokens = self.watch.lockstep_tokens
        self.report.seconds = time.monotonic() - started

    def _swap(self) -> None:
        """Requests that came before finish on the old members, which leave after the last of them."""
        if not self._leaving and self._draws.random() < 1 / SWAP_EVERY:
            self.engine.load(self.swaps[self._other])
            self._serving, self._other, self._leaving = self._other, self._serving, True
            in_use = sum(_of(live.ask, self._other) for live in self._live.values())
            self.watch.seen["ensemble swapped in use" if in_use else "ensemble swapped at rest"] += 1
        if self._leaving and not any(_of(live.ask, self._other) for live in self._live.values()):
            self.engine.unload(self._other)
            self._leaving = False
            served = {adapter.int_id for spec in self.engine.specs.values() for adapter in spec.adapters}
            assert self.engine.adapters() <= served

    def _submit(self, ask: Ask) -> None:
        if _of(ask, self._other):
            assert ask.model is not None
            ask = replace(ask, model=ask.model.replace(self._other, self._serving))
        self._submitted += 1
        name = f"ask-{self._submitted}"
        spec = self.engine.specs.get(ask.model)
        if spec is not None:
            spec = replace(spec, forced=ask.forced, watched=ask.watched)
        # A seed that the client has to draw must be the same in the next run.
        with patch("softspec.engine.front.translation.secrets.randbelow", self._draws.randrange):
            inside, seed = self.engine.submit(name, ask.model, ask.prompt, _sampling_params(ask), spec)
        heard = [_Heard() for _ in range(ask.settings.get("n", 1))]
        self._live[name] = _Live(ask, inside, seed, spec, self.report.steps, heard)

    def _step(self) -> None:
        was_busy = bool(self._live)
        outputs = self.engine.step()
        self.report.steps += 1
        for output in outputs:
            self._hear(output)
        self.watch.after_step()
        for name, live in list(self._live.items()):
            assert self.report.steps - live.born < LONGEST_WAIT, f"{name} {live.ask} does not end"
            self._leave_if_due(name, live)
        if was_busy and not self._live:
            self.watch.when_idle()

    def _leave_if_due(self, name: str, live: _Live) -> None:
        states = [self.engine.group_state(request_id) for request_id in live.inside]
        if live.ask.leaves_in not in states:
            return
        live.steps_in_state += 1
        if live.steps_in_state > live.ask.patience:
            self.engine.abort(name)
            del self._live[name]
            self.report.aborted += 1
            self.watch.seen[f"aborted while {live.ask.leaves_in}"] += 1
            assert {self.engine.group_state(request_id) for request_id in live.inside} == {"gone"}

    def _hear(self, output: RequestOutput) -> None:
        live = self._live[output.request_id]
        for completion in output.outputs:
            live.heard[completion.index].hear(completion, live.ask, live.spec)
            if completion.finish_reason is not None:
                live.ended[completion.index] = completion
        if output.finished:
            self._finish(self._live.pop(output.request_id))

    def _finish(self, live: _Live) -> None:
        ask = live.ask
        if ask.leaves_in == "finished":
            self.engine.abort_late(live.inside)
            self.watch.seen["aborted while finished"] += 1
        self.report.finished += 1
        for index, heard in enumerate(live.heard):
            answer = heard.answer(live.ended[index], ask, live.seed)
            self._count(ask, answer)
            if self._draws.randrange(self.check_every) == 0:
                try:
                    self.oracle.check(ask, answer)
                except Exception as error:
                    error.add_note(f"{ask}\n{answer}")
                    raise
                self.report.checked += 1
        self.traffic.remember(ask, live.heard[0].token_ids)

    def _count(self, ask: Ask, answer: Answer) -> None:
        assert answer.finish_reason in ("length", "stop", "error"), answer.finish_reason
        ending = "length" if answer.finish_reason == "length" else "eos"
        if answer.stop_reason == NO_TOKEN_LEFT:
            ending = "its constraints"
        elif answer.stop_reason is not None:
            ending = "stop string" if isinstance(answer.stop_reason, str) else "stop token"
        self.watch.seen[f"{ask.kind} ended by {ending}"] += 1
        if ask.forced:
            self.watch.seen[f"{ask.kind} scored"] += 1
        if ask.settings.get("n", 1) > 1:
            self.watch.seen["one of n answers"] += 1
        if ask.regex is not None or ask.schema is not None:
            kind = "regex" if ask.regex is not None else "schema"
            self.watch.seen[f"{kind} ended by {ending}"] += 1


def _of(ask: Ask, ensemble: str) -> bool:
    """Whether it asks the ensemble or one of its members."""
    return ask.model is not None and ask.model.split("/")[0] == ensemble


def _sampling_params(ask: Ask) -> SamplingParams:
    structure = None
    if ask.regex is not None or ask.schema is not None:
        structure = StructuredOutputsParams(regex=ask.regex, json=ask.schema)
    return SamplingParams(
        **ask.settings, structured_outputs=structure, output_kind=RequestOutputKind[ask.kind_of_output]
    )
