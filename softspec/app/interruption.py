"""How a long command ends early: SIGINT and SIGTERM become an error that every `with` and `finally` sees.

In: what to tell the user. Out: `Interrupted`. Knows nothing of what runs.
"""

import signal
from collections.abc import Iterator
from contextlib import contextmanager

from softspec.errors import Interrupted


@contextmanager
def interruptible(told: str) -> Iterator[None]:
    """SIGINT and SIGTERM end what runs here at once, in the midst of a start too; so nothing is left running.

    Raises:
        Interrupted: one of them came, here or in an inner part that noticed it first; its message is `told`.
    """
    received = 0

    def interrupt(number: int, frame: object) -> None:
        nonlocal received
        received = number
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    except KeyboardInterrupt as error:
        raise Interrupted(told, received or signal.SIGINT) from error
    except Interrupted as error:
        raise Interrupted(told, received or error.signal_number) from error
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
