"""vLLM's real `AsyncLLM` in front of an engine core that follows a script: real chunks, stop strings and choices.

In: what each choice says, token by token, with its telemetry. Out: an engine for `scripted_vllm.serving`, and how many
tokens were asked of it. The choices of all requests take the scripts in the order in which they arrive.
"""

import asyncio
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import numpy as np
from vllm.renderers.registry import renderer_from_config
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, EngineCoreRequest, FinishReason
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.input_processor import InputProcessor
from vllm.v1.engine.output_processor import OutputProcessor
from vllm.v1.outputs import LogprobsLists

from softspec.engine.wire import COLUMNS, KEY, GroupSpec


@dataclass(frozen=True)
class Said:
    """One token of a script: a letter of ASCII, and what the members thought of it."""

    letter: str
    epistemic: float = 0.1
    members: tuple[float, float] = (-1.0, -1.0)


@dataclass
class _Running:
    request: EngineCoreRequest
    script: Sequence[Said]
    said: int = 0

    @cached_property
    def spec(self) -> GroupSpec | None:
        """The group that is asked for, if any."""
        params = self.request.sampling_params
        wire = (params.extra_args or {}).get(KEY) if params else None
        return None if wire is None else GroupSpec.from_wire(wire)


@dataclass
class ScriptedCore:
    """Stands in for the engine core's process. `burst` tokens of every choice come in one message.

    `said` counts the tokens of every choice that ever arrived, in order of arrival. Tokens that are forced, to score
    them, are given whatever the script says; `believes` tells what member k thinks of a token after those before it
    (prompt and output), by default what the script says of its step.
    """

    scripts: Sequence[Sequence[Said]]
    token_of: Any
    burst: int = 1
    believes: Callable[[Sequence[int], int, int], float] | None = None
    running: dict[str, _Running] = field(default_factory=dict)
    said: list[_Running] = field(default_factory=list)
    aborted: list[str] = field(default_factory=list)
    arrived: asyncio.Event = field(default_factory=asyncio.Event)
    resources: Any = None

    async def get_supported_tasks_async(self) -> tuple[str, ...]:
        return ("generate",)

    async def add_request_async(self, request: EngineCoreRequest) -> None:
        state = _Running(request, self.scripts[len(self.said) % len(self.scripts)])
        self.said.append(state)
        self.running[request.request_id] = state
        self.arrived.set()

    async def abort_requests_async(self, request_ids: list[str]) -> None:
        self.aborted += request_ids
        for request_id in request_ids:
            self.running.pop(request_id, None)

    async def get_output_async(self) -> EngineCoreOutputs:
        while not self.running:
            self.arrived.clear()
            await self.arrived.wait()
        # One turn of the event loop between messages, as a socket gives: readers may take what there is.
        for _ in range(3):
            await asyncio.sleep(0)
        outputs = [self._next(state) for _ in range(self.burst) for state in list(self.running.values())]
        return EngineCoreOutputs(outputs=[output for output in outputs if output is not None])

    def shutdown(self, timeout: float | None = None) -> None:
        """Nothing runs in another process."""

    def _belief(self, said: Said, before: Sequence[int], token_id: int, member: int) -> float:
        return said.members[member] if self.believes is None else self.believes(before, token_id, member)

    def _next(self, state: _Running) -> EngineCoreOutput | None:
        params = state.request.sampling_params
        assert params is not None
        spec = state.spec
        forced = spec.forced if spec else ()
        length = len(forced) or min(len(state.script), params.max_tokens or len(state.script))
        if state.said == length:
            return None
        step, state.said = state.said, state.said + 1
        said = state.script[step % len(state.script)]
        finish = None
        if state.said == length:
            finish = FinishReason.LENGTH
            del self.running[state.request.request_id]
        token_id = forced[step] if forced else self.token_of(said.letter)
        before = [*(state.request.prompt_token_ids or ()), *forced[:step]]
        return EngineCoreOutput(
            request_id=state.request.request_id,
            new_token_ids=[token_id],
            new_logprobs=spec and _logprobs(token_id, said, spec, step, partial(self._belief, said, before)),
            finish_reason=finish,
        )


def _logprobs(
    token_id: int, said: Said, spec: GroupSpec, step: int, belief: Callable[[int, int], float]
) -> LogprobsLists:
    members = [belief(token_id, k) for k in range(spec.num_members)]
    mixture = math.log(sum(math.exp(w + m) for w, m in zip(spec.log_weights, members, strict=True)))
    numbers = [0.5 + said.epistemic, 0.5, said.epistemic, said.epistemic / 2, *members]
    ids = [token_id] * (1 + spec.num_top) + [0] * len(COLUMNS) + [token_id] * len(members)
    values = [mixture] * (1 + spec.num_top) + numbers
    for watched in spec.watched_at(step):
        ids += [watched] * spec.num_members
        values += [belief(watched, k) for k in range(spec.num_members)]
    return LogprobsLists(np.array([ids]), np.array([values]), np.array([1]))


class ScriptedAsyncLLM(AsyncLLM):
    """vLLM's front end, whole but for the processes behind it."""

    def __init__(self, config: Any, scripts: Sequence[Sequence[Said]] = ()) -> None:
        self.vllm_config = config
        self.model_config = config.model_config
        self.scheduler_config = config.scheduler_config
        self.observability_config = config.observability_config
        self.log_requests = self.log_stats = False
        self.logger_manager = self.admission_stats = self.output_handler = None
        self.renderer = renderer_from_config(config)
        self.input_processor = InputProcessor(config, self.renderer)
        self.output_processor = OutputProcessor(self.renderer.tokenizer, log_stats=False)
        encode = self.renderer.tokenizer.encode
        self.engine_core = ScriptedCore(scripts, lambda letter: encode(letter)[0])
        self.adapters: list[str] = []

    @property
    def errored(self) -> bool:
        return False

    def play(self, *scripts: Sequence[Said], burst: int = 1) -> ScriptedCore:
        """Let the next choices say this; returns the core, which has forgotten what it said before."""
        core = self.engine_core
        core.scripts, core.burst = scripts, burst
        core.said, core.aborted = [], []
        return core

    async def collective_rpc(self, method: str, *_: Any, **__: Any) -> list[str]:
        return [method]

    async def add_lora(self, lora_request: Any) -> bool:
        self.adapters.append(lora_request.lora_name)
        return True

    async def remove_lora(self, lora_id: int) -> bool:
        return True

    async def check_health(self) -> None:
        return None
