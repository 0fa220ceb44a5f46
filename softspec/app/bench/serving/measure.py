"""The measuring loop: every way in every repeat of every cell, in turn, results on disk after every repeat.

In: ways and settings. Out: samples, in a document. Knows no engine.
"""

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tqdm import tqdm

from softspec.app.bench.core.document import Results
from softspec.app.bench.serving.sample import Sample
from softspec.app.bench.serving.settings import BenchSettings, Cell

_IDLE_S = 1.1
"""An engine goes on polling for a second after its last step, on a core that the next one needs."""


@dataclass(frozen=True)
class Way:
    """answer: (prompt ids, number of tokens) -> the `time.perf_counter()` at which each token had arrived.

    `engine` names the process that computes; `prepare` is awaited before the clock starts.
    """

    answer: Callable[[Sequence[int], int], Awaitable[list[float]]]
    engine: str
    prepare: Callable[[], Awaitable[None]] | None = None


async def measure_all(
    ways: Mapping[str, Way], settings: BenchSettings, vocab_size: int, results: Results, bar: "tqdm[Any]"
) -> None:
    """Warm every way up in the smallest cell, estimate the time from that, then measure."""
    stage = _Stage(ways, settings.output_tokens)
    smallest = settings.cells[0]
    bar.set_description("warming up")
    # Twice: the first answer also loads adapters and compiles.
    for repeat in (-2, -1):
        warm = {
            way: await stage.take(way, settings.prompts(smallest, repeat, way, vocab_size), repeat, 0)
            for way in settings.ways_of(smallest)
        }
    costs = {
        (cell, way): _seconds(warm[way], smallest, cell, settings.output_tokens)
        for cell in settings.cells
        for way in settings.ways_of(cell)
    }
    bar.total = settings.repeats * sum(costs.values())
    tqdm.write(f"at most about {bar.total / 60:.0f} minutes to go", file=sys.stderr)
    for cell in settings.cells:
        bar.set_description(str(cell))
        results.begin(cell, settings.ways_of(cell))
        for repeat in range(settings.repeats):
            for place, way in enumerate(settings.order(cell, repeat)):
                prompts = settings.prompts(cell, repeat, way, vocab_size)
                results.add(cell, way, await stage.take(way, prompts, repeat, place))
                bar.update(costs[cell, way])
            results.write()
    results.write(complete=True)


class _Stage:
    """Lets one way at a time on, after the engine of the one before has come to rest."""

    def __init__(self, ways: Mapping[str, Way], num_tokens: int) -> None:
        self._ways = ways
        self._num_tokens = num_tokens
        self._last_engine: str | None = None

    async def take(self, name: str, prompts: Sequence[Sequence[int]], repeat: int, place: int) -> Sample:
        """Answer all prompts at once, twice: as new ones, then again for the pace at which tokens follow."""
        way = self._ways[name]
        if self._last_engine not in (None, way.engine):
            await asyncio.sleep(_IDLE_S)
        self._last_engine = way.engine
        if way.prepare is not None:
            await way.prepare()
        sent = time.perf_counter()
        fresh = await self._answer(way, prompts)
        return Sample.of(repeat, place, sent, fresh, await self._answer(way, prompts))

    async def _answer(self, way: Way, prompts: Sequence[Sequence[int]]) -> list[list[float]]:
        return await asyncio.gather(*(way.answer(prompt, self._num_tokens) for prompt in prompts))


def _seconds(sample: Sample, measured: Cell, cell: Cell, num_tokens: int) -> float:
    """An upper bound, as if nothing were gained by computing users together."""
    users = cell.concurrency / measured.concurrency
    pace = sample.tpot_s or measured.concurrency / sample.tokens_per_s
    return users * (sample.ttft_s * cell.prompt_tokens / measured.prompt_tokens + 2 * num_tokens * pace)
