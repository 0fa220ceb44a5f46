"""A server whose engine has died: it says so for a moment, and ends.

In: the engine, and the server's state. Out: an HTTP server that exits, for a supervisor to start it again. vLLM's own
watchdog looks every five seconds, and waits without limit for clients that do not read.
"""

import asyncio
import logging
from typing import TYPE_CHECKING

from starlette.datastructures import State

from softspec.server.ops.readiness import Engine
from softspec.server.ops.stopping import FAREWELL_S, limit_farewell

if TYPE_CHECKING:
    from softspec.engine.front.ending import Ending

LOOK_S = 0.05
"""Sooner than the HTTP server, told by a request that found the engine dead, begins to wait for its clients."""
SAY_SO_S = 1
"""How long `/health` and `/ready` say it, unless a request that finds the engine dead ends the server before."""
_log = logging.getLogger(__name__)


async def end_when_dead(engine: Engine, ending: "Ending", state: State) -> None:
    """Wait until the engine has died, tell those who wait for an answer, and end the server soon after."""
    while not engine.errored:
        await asyncio.sleep(LOOK_S)
    if ending.begun and not ending.engine_died:
        return  # it was told to
    _log.error("the engine has died: requests in flight end with an error, and so does this server")
    limit_farewell(state)
    ending.fail_the_rest()
    await asyncio.sleep(SAY_SO_S)
    state.server.should_exit = True
    await asyncio.sleep(FAREWELL_S)
    state.server.force_exit = True
