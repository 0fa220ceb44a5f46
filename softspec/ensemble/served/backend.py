"""The vLLM backend: what an `Ensemble` asks goes to the engine that serves, all of it at once.

In: an engine in a loop of its own. Out: the answers of a `Backend`. The engine is told by its methods alone, so that
nothing here imports vllm.
"""

from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, TypeVar

from softspec.ensemble.backend import Asked, Draw, Drawn, Sampling, Traces
from softspec.ensemble.results import ScoredChoices
from softspec.ensemble.served.loop import LoopThread
from softspec.errors import DataError
from softspec.maths.sampling import SamplingSpec

if TYPE_CHECKING:
    from softspec.engine.start.local import LocalEngine

T = TypeVar("T")

SCORED_AT_ONCE = 64
"""Prompts that are waited for at once; how many of their answers run at once is the engine's to say."""
DRAWN_AT_ONCE = 4096


class ServedBackend:
    """An engine with one ensemble in it, asked under the ensemble's name."""

    def __init__(self, engine: "LocalEngine", name: str, loop: LoopThread, close: Callable[[], None]) -> None:
        """Ask `engine`, which lives in `loop`; `close` ends both."""
        self.engine = engine
        self._name, self._loop, self._close = name, loop, close

    def choices(self, asked: Iterable[Asked]) -> Iterator[ScoredChoices]:
        """Log-probabilities of whole answers."""
        return self._loop.in_order(map(self._choices, asked), SCORED_AT_ONCE)

    def traces(self, asked: Iterable[Asked]) -> Iterator[Traces]:
        """Every token of every answer with its uncertainty."""
        return self._loop.in_order(map(self._traces, asked), SCORED_AT_ONCE)

    def draw(self, draws: Sequence[Draw], sampling: Sampling) -> Iterator[tuple[int, Drawn]]:
        """An answer to every prompt."""
        return enumerate(self._loop.in_order((self._drawn(draw, sampling) for draw in draws), DRAWN_AT_ONCE))

    def close(self) -> None:
        """End the engine's process."""
        self._close()

    async def _choices(self, asked: Asked) -> ScoredChoices:
        found = await _placed(
            self.engine.score_options(self._name, asked.prompt_ids, asked.answers), asked.place
        )
        members = zip(*(option.member_log_probs for option in found), strict=True)
        return ScoredChoices(
            tuple(option.log_prob for option in found),
            tuple(members),
            tuple(option.num_tokens for option in found),
        )

    async def _traces(self, asked: Asked) -> Traces:
        found = await _placed(self.engine.score(self._name, asked.prompt_ids, asked.answers), asked.place)
        return [trace.tokens for trace in found]

    async def _drawn(self, draw: Draw, how: Sampling) -> Drawn:
        spec = SamplingSpec(how.temperature, how.top_k, how.top_p, how.min_p, seed=draw.seed)
        answering = self.engine.draw(self._name, draw.prompt_ids, spec, draw.max_tokens, how.stop)
        completion, trace = await _placed(answering, draw.place)
        return Drawn(
            completion.text,
            tuple(trace.tokens),
            "length" if completion.finish_reason == "length" else "stop",
        )


async def _placed(work: Awaitable[T], place: str) -> T:
    """The result; what is wrong with what was asked is told with its place."""
    try:
        return await work
    except ValueError as error:  # ours, and vLLM's own of a request
        raise DataError(f"{place}: {error}") from error
