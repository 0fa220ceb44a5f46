"""A real vLLM engine with ensembles in it, driven from synchronous tests.

In: a base checkpoint and ensemble directories. Out: answers with their traces. One engine serves a whole test session.
"""

import asyncio
import os
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from vllm import AsyncEngineArgs, SamplingParams
from vllm.outputs import RequestOutput
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.metrics.loggers import StatLoggerBase
from vllm.v1.metrics.stats import IterationStats

from softspec.engine.front.client import EnsembleClient
from softspec.engine.front.ensemble import load_ensembles
from softspec.engine.requirements import SCHEDULER, WORKER_EXTENSION
from softspec.engine.trace import ChoiceTrace, RequestTrace, current_trace

T = TypeVar("T")

os.environ.setdefault("VLLM_USE_V2_MODEL_RUNNER", "0")


@dataclass(frozen=True)
class Question:
    """One request. `model` None asks the base. `give_up_after` outputs the client disconnects."""

    model: str | None
    prompt_ids: Sequence[int]
    params: SamplingParams
    give_up_after: int | None = None


@dataclass
class Reply:
    """The last output (of a streamed request: its pieces put together) and the trace of every choice."""

    token_ids: list[list[int]] = field(default_factory=list)
    choices: list[ChoiceTrace] = field(default_factory=list)
    last: RequestOutput | None = None


class _Preemptions(StatLoggerBase):
    """vLLM's own count of the requests that one engine preempted; its Prometheus series are the newest engine's."""

    def __init__(self) -> None:
        self.count = 0

    def record(self, scheduler_stats: object, iteration_stats: IterationStats | None, **_: object) -> None:
        if iteration_stats is not None:
            self.count += iteration_stats.num_preempted_reqs

    def log_engine_initialized(self) -> None:
        """Nothing to say."""


class EngineHarness:
    """Small on purpose: few KV blocks and a small token budget force preemption and chunked prefill.

    `spare` adapters beside those of the ensembles can be loaded later.
    """

    def __init__(self, base: Path, ensembles: Sequence[Path], spare: int = 0, **engine_args: Any) -> None:
        loaded = load_ensembles(ensembles)
        adapters = spare + sum(ensemble.manifest.num_members for ensemble in loaded)
        self._loop = asyncio.new_event_loop()
        self._requests = 0
        args = AsyncEngineArgs(
            model=str(base),
            enforce_eager=True,
            enable_lora=True,
            max_loras=adapters,
            max_lora_rank=16,
            max_logprobs=64,
            block_size=32,
            scheduler_cls=SCHEDULER,
            worker_extension_cls=WORKER_EXTENSION,
            **{"dtype": "float32", **engine_args},
        )
        self.preemptions = _Preemptions()
        self.engine = AsyncLLM.from_engine_args(args, stat_loggers=[lambda *_: self.preemptions])
        self.adapters = self.call_workers("install_ensemble_sampler")
        # However few tokens there are: what is shared is seldom more in so small an engine.
        self.shares_layers = self.call_workers("share_lower_layers", 1) == [None]
        self.group_preemptions: list[str] = []
        self.client = EnsembleClient(self.engine, loaded, on_preemption=self.group_preemptions.append)

    def call_workers(self, method: str, *args: Any) -> list[Any]:
        return self._loop.run_until_complete(self.engine.collective_rpc(method, args=args))

    def ask(self, *questions: Question, timeout_s: float = 600) -> list[Reply]:
        """Send all questions at once and wait for all replies."""

        async def gather() -> list[Reply]:
            return await asyncio.gather(*(asyncio.create_task(self.reply(each)) for each in questions))

        return self.run(gather(), timeout_s)

    def run(self, work: Coroutine[Any, Any, T], timeout_s: float = 600) -> T:
        """The result of `work` on the engine's event loop."""
        return self._loop.run_until_complete(asyncio.wait_for(work, timeout_s))

    def close(self) -> None:
        async def stop() -> None:
            self.engine.shutdown()
            tasks = asyncio.all_tasks() - {asyncio.current_task()}
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        self._loop.run_until_complete(stop())
        self._loop.close()
        # Its finaliser needs modules that the interpreter takes apart first at exit.
        del self.client, self.engine

    async def reply(self, question: Question, began: asyncio.Event | None = None) -> Reply:
        """One answer; `began` is set when the first output is there."""
        self._requests += 1
        trace = RequestTrace()
        current_trace.set(trace)
        reply = Reply(token_ids=[[] for _ in range(question.params.n)])
        lora_request = self.client.registry.lora_requests[question.model] if question.model else None
        outputs = self.client.generate(
            {"prompt_token_ids": list(question.prompt_ids)},
            question.params,
            f"request-{self._requests}",
            lora_request=lora_request,
        )
        received = 0
        async for reply.last in outputs:
            for completion in reply.last.outputs:
                reply.token_ids[completion.index] = list(completion.token_ids)
            received += 1
            if began is not None:
                began.set()
            if received == question.give_up_after:
                await outputs.aclose()
                break
        reply.choices = list(trace.choices.values())
        return reply
