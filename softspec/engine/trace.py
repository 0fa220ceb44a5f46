"""What the engine measured for one HTTP request, kept beside vLLM's own outputs.

In and out: tokens with their uncertainty. Whoever calls vLLM's handlers opens a trace with `tracing`;
`EnsembleClient.generate` fills it token by token. Knows neither HTTP nor vLLM.
"""

from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TypeVar

from softspec.artefact.calibration import Calibration
from softspec.artefact.manifest import WeightsRule
from softspec.maths.answer import TokenUncertainty

T = TypeVar("T")
Judge = Callable[[TokenUncertainty], bool]
"""Asked about every token of a choice in its turn; true ends the choice with that token."""
JudgeOf = Callable[["ChoiceTrace"], Judge]


@dataclass
class ChoiceTrace:
    """The tokens of one choice so far; `seed` replays exactly this choice, `judge_of` gives who may end it.

    All but the tokens is known once the members that answer are chosen, which is before the first token. `watched`: for
    each token, where the request watches any, other tokens' log-probabilities under each member at that step.
    """

    log_weights: tuple[float, ...] = ()
    weights_rule: WeightsRule = "prefix_posterior"
    seed: int = 0
    tokens: list[TokenUncertainty] = field(default_factory=list)
    judge_of: JudgeOf | None = None
    watched: list[dict[int, tuple[float, ...]]] = field(default_factory=list)
    calibration: Calibration | None = None


@dataclass
class RequestTrace:
    """All choices of one HTTP request, by OpenAI choice index (prompt index * n + sample index)."""

    choices: dict[int, ChoiceTrace] = field(default_factory=dict)
    judge_of: JudgeOf | None = None


current_trace: ContextVar[RequestTrace | None] = ContextVar("softspec_trace", default=None)


@contextmanager
def tracing(judge_of: JudgeOf | None = None) -> Iterator[RequestTrace]:
    """A trace that is filled by whatever is asked of ensembles inside this context; a judge may end its choices."""
    trace = RequestTrace(judge_of=judge_of)
    token = current_trace.set(trace)
    try:
        yield trace
    finally:
        current_trace.reset(token)


async def traced(items: AsyncGenerator[T, None], trace: RequestTrace) -> AsyncGenerator[T, None]:
    """What a generator yields that asks the engine only while it is read, after the context of its request has ended.

    The trace is set for each step alone: between them the generator's reader runs, which is none of its business.
    """
    async with aclosing(items):
        while True:
            token = current_trace.set(trace)
            try:
                item = await anext(items)
            except StopAsyncIteration:
                return
            finally:
                current_trace.reset(token)
            yield item
