"""The ways to an answer that are measured side by side, each as a function from a prompt to the times of its tokens.

Knows how each way is driven, but not what is made of the times.
"""

import asyncio
import time
from collections.abc import AsyncIterable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from softspec.app.bench.serving.measure import Way
from softspec.app.bench.serving.outside_client import SteppingClient
from softspec.maths.sampling import SamplingSpec
from softspec.reference import ReferenceEnsemble

if TYPE_CHECKING:  # vLLM, which takes seconds
    from softspec.engine.start.local import LocalEngine


def local_ways(engine: "LocalEngine", ensemble: str, members: Sequence[str]) -> dict[str, Way]:
    """Everything that our own engine can do; names as it knows them."""

    async def from_ensemble(prompt_ids: Sequence[int], num_tokens: int) -> list[float]:
        return await _arrivals(engine.ask_ensemble(ensemble, prompt_ids, num_tokens))

    async def from_member(prompt_ids: Sequence[int], num_tokens: int) -> list[float]:
        return await _arrivals(engine.ask_adapter(members[0], prompt_ids, num_tokens))

    async def from_members(prompt_ids: Sequence[int], num_tokens: int) -> list[float]:
        answers = (_arrivals(engine.ask_adapter(member, prompt_ids, num_tokens)) for member in members)
        return [max(times) for times in zip(*await asyncio.gather(*answers), strict=True)]

    # All prepare, so that none has the advantage of a worker that is awake.
    async def prepare(measures: bool = True, shares: bool = True) -> None:
        await engine.measure_uncertainty(measures)
        await engine.share_lower_layers(shares)

    return {
        "member": Way(from_member, "local", prepare),
        "ensemble": Way(from_ensemble, "local", prepare),
        "unshared": Way(from_ensemble, "local", partial(prepare, shares=False)),
        "mixture": Way(from_ensemble, "local", partial(prepare, measures=False)),
        "members": Way(from_members, "local", prepare),
    }


def client_way(client: SteppingClient) -> Way:
    async def answer(prompt_ids: Sequence[int], num_tokens: int) -> list[float]:
        return [time.perf_counter() async for _ in client.ask(prompt_ids, num_tokens)]

    return Way(answer, "stock")


def reference_way(reference: ReferenceEnsemble) -> Way:
    async def answer(prompt_ids: Sequence[int], num_tokens: int) -> list[float]:
        steps = reference.steps(prompt_ids, SamplingSpec(temperature=0), num_tokens)
        return [time.perf_counter() for _ in steps]

    return Way(answer, "reference")


async def _arrivals(counts: AsyncIterable[int]) -> list[float]:
    return [now async for count in counts for now in [time.perf_counter()] * count]
