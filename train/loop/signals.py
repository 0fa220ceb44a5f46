"""The signals that end a run: the step that is running comes to its end, and a checkpoint is written.

In: what to tell the user. Out: the signal that came. Knows nothing of what runs.
"""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

ENDING = (
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGXCPU,
)
"""All that would end a process and can be caught; batch systems announce the end of a job by one of the last three."""
FROM_THE_KEYBOARD = {signal.SIGINT, signal.SIGQUIT}
"""These mean it when they come again; others are sent twice by terminals and launchers."""


@dataclass
class StopRequest:
    """The first ending signal that arrived; None so far."""

    signal_number: int | None = None


@contextmanager
def stop_on_signals(tell: Callable[[str], None] | None = None) -> Iterator[StopRequest]:
    """Note the signals that end a process instead of dying at once, and tell that the run stops after this step.

    The same from the keyboard again acts as before, and so ends the run at once. What the process ignores it goes on
    ignoring (SIGHUP under `nohup`), and what other code handles is left to it, but for SIGINT and SIGTERM. Outside the
    main thread Python delivers no signals, so there is nothing to catch.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: handler for number in ENDING if _is_ours(number, handler := signal.getsignal(number))}

    def note(number: int, frame: FrameType | None) -> None:
        if request.signal_number is None:
            request.signal_number = number
            if tell:
                again = "; again: at once, without what came after the last checkpoint"
                tell(f"stopping after this step{again if number in FROM_THE_KEYBOARD else ''}")
        if number in FROM_THE_KEYBOARD:
            signal.signal(number, before[signal.Signals(number)])

    for number in before:
        signal.signal(number, note)
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _is_ours(number: int, handler: object) -> bool:
    return handler is not None and (number in (signal.SIGINT, signal.SIGTERM) or handler is signal.SIG_DFL)
