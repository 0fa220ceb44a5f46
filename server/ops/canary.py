"""The canary: one token of an ensemble, to see that it answers and that its uncertainty arrives.

In: a way to draw one token from a model. Out: nothing, or an error that says what is missing. Knows the trace that the
engine fills, and nothing else of it.
"""

from collections.abc import Awaitable, Callable

from softspec.engine.trace import tracing
from softspec.errors import EngineError
from softspec.server.ops.readiness import Canary


def canary_of(draw_one_token: Callable[[str], Awaitable[None]]) -> Canary:
    """A canary for readiness; `draw_one_token` takes the ensemble's name and raises when no answer comes."""

    async def canary(ensemble: str) -> None:
        with tracing() as trace:
            await draw_one_token(ensemble)
        if [len(choice.tokens) for choice in trace.choices.values()] != [1]:
            raise EngineError(
                f"ensemble '{ensemble}' answers without uncertainty: found no telemetry for its token"
            )

    return canary
