"""A word from time to time while something takes minutes and says nothing itself.

In: what is waited for, in words. Out: lines of the log.
"""

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count

_log = logging.getLogger(__name__)


@contextmanager
def telling_how_long(what: str, every_s: float = 30) -> Iterator[None]:
    """Say every so many seconds that something still goes on, until the block ends."""
    ended = threading.Event()

    def tell() -> None:
        for number in count(1):
            if ended.wait(every_s):
                return
            _log.info("%s: %g s so far", what, number * every_s)

    thread = threading.Thread(target=tell, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
