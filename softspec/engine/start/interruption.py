"""How a start ends early: a signal becomes an error, and whatever does not end by itself is ended.

In: SIGINT or SIGTERM. Out: `Interrupted` within seconds, with no process left behind. Once the server runs, vLLM's own
handlers take over, and those of `softspec.server.ops.second_signal` after the first signal.
"""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from threading import Timer

import psutil

from softspec.errors import Interrupted

PATIENCE_S = 8
"""How long a start may take to end by itself; vLLM waits 5 s for a process to end before it kills it."""
_LAST_WAIT_S = 3
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def interruptible_start() -> Iterator[Callable[[], None]]:
    """SIGINT and SIGTERM end what runs here, a blocked start too.

    What is yielded raises if one of them came: libraries that wait in C, as vLLM's sockets do, may lose the interrupt.

    Raises:
        Interrupted: one of them came.
    """
    received = 0

    def interrupt(number: int, _frame: object) -> None:
        nonlocal received
        received = number
        for each in _SIGNALS:
            signal.signal(each, signal.SIG_IGN)
        last_resort = Timer(PATIENCE_S, end_everything, (str(told(number)), told(number).exit_code))
        last_resort.daemon = True
        last_resort.start()
        raise KeyboardInterrupt

    def require_none() -> None:
        if received:
            raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in _SIGNALS}
    try:
        yield require_none
        require_none()
    except BaseException as error:
        # What was interrupted may end with an error of its own, for instance that the engine did not start.
        if received or isinstance(error, KeyboardInterrupt):
            raise told(received or signal.SIGINT) from error
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def told(number: int) -> Interrupted:
    """What the user hears of a signal that came while the server started."""
    return Interrupted(f"stopped by {signal.Signals(number).name} while the server started", number)


def end_everything(reason: str, exit_code: int) -> None:
    """Kill every process below this one, say why, and end this one; nothing else is done any more."""
    children = psutil.Process().children(recursive=True)
    for child in children:
        with suppress(psutil.NoSuchProcess):
            child.kill()
    psutil.wait_procs(children, timeout=_LAST_WAIT_S)
    with suppress(OSError):  # a log that cannot be written
        print(f"softspec: {reason}, and what did not end by itself was killed", file=sys.stderr, flush=True)
    os._exit(exit_code)
