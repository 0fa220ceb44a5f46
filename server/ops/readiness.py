"""Whether the server may receive traffic: every ensemble has answered a canary and nothing is stopping.

In: a canary per ensemble, and the state of the process. Out: the reason why not, or none. Knows no HTTP.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import Protocol

from softspec.server.ops.stopping import STOPPING, Ending

Canary = Callable[[str], Awaitable[None]]


class Engine(Protocol):
    """The engine behind the server, as far as readiness looks at one."""

    @property
    def errored(self) -> bool: ...


def obstacle(engine: Engine, ending: Ending) -> str | None:
    """Why the server must take no traffic whatever its ensembles say; None when nothing stands against it."""
    if ending.begun:
        return STOPPING
    return "the engine has died" if engine.errored else None


class Readiness:
    """The canaries of all ensembles: run once, and after a failure again when somebody asks.

    `ensembles` may change while they run. `obstacle` gives a reason that needs no canary, such as a server that
    drains. A canary raises when its ensemble cannot answer. `on_ready` is called once all have answered.
    """

    def __init__(
        self,
        ensembles: Iterable[str],
        canary: Canary,
        obstacle: Callable[[], str | None],
        on_ready: Callable[[], None] = lambda: None,
    ) -> None:
        self._ensembles = ensembles
        self._canary = canary
        self._obstacle = obstacle
        self._on_ready = on_ready
        self._trial: asyncio.Task[None] | None = None

    def begin(self) -> None:
        """Start the canaries in the background."""
        self._trial = asyncio.create_task(self._try_all())

    def problem(self) -> str | None:
        """Why the server is not ready; None when it is. Never waits."""
        if (reason := self._obstacle()) is not None:
            return reason
        if self._trial is None:
            self.begin()
        assert self._trial is not None
        if not self._trial.done():
            return "the canary step of the ensembles has not finished"
        error = self._trial.exception()
        if error is None:
            return None
        self.begin()
        return f"the canary step failed: {error}"

    async def wait(self) -> None:
        """Wait for the canaries that run; raises what one of them raised."""
        if self._trial is not None:
            await self._trial

    async def _try_all(self) -> None:
        for name in tuple(self._ensembles):
            await self._canary(name)
        self._on_ready()
