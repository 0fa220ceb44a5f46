"""A second SIGTERM or SIGINT: a server that is stopping already ends at once.

In: the server's state, and the requests that it still answers. Out: they get their error, and the process is gone two
seconds later at the latest, with all that it started. vLLM's own handler ignores a second signal.
"""

import asyncio
import logging
import signal
import threading
from functools import partial

from starlette.datastructures import State

from softspec.engine.start.interruption import end_everything
from softspec.server.ops.stopping import Unanswered

READ_S = 1
"""How long clients then have to read their error."""
_LAST_RESORT_S = 2
_log = logging.getLogger(__name__)


def end_at_second_signal(state: State, unanswered: Unanswered) -> None:
    """From now on, which is when the end has begun, a signal ends everything at once."""
    if threading.current_thread() is not threading.main_thread():
        return  # no process of its own, so its signals are not for this server
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, partial(_end_now, state, unanswered, number))


def _end_now(state: State, unanswered: Unanswered, number: signal.Signals) -> None:
    _log.warning("%s came a second time: what is not answered yet ends with an error", number.name)
    last_resort = threading.Timer(_LAST_RESORT_S, end_everything, (f"{number.name} came a second time", 0))
    last_resort.daemon = True
    last_resort.start()
    unanswered.give_up()
    asyncio.get_running_loop().call_later(READ_S, _leave, state)


def _leave(state: State) -> None:
    state.server.force_exit = True
