"""An event loop in a thread of its own, so that a plain script or a notebook can wait for what runs in it.

In: coroutines, from any thread. Out: their results, in order. Knows no engine.
"""

import asyncio
import threading
from collections import deque
from collections.abc import Coroutine, Iterable, Iterator
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")


class LoopThread:
    """A running event loop; `close` ends it."""

    def __init__(self, loop: asyncio.AbstractEventLoop | None = None) -> None:
        """Run a new loop, or one that nobody runs."""
        self._loop = loop or asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="softspec-engine", daemon=True)
        self._thread.start()

    def wait_for(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of `work`, which is cancelled where the waiting is interrupted."""
        return next(self.in_order([work], 1))

    def in_order(self, works: Iterable[Coroutine[Any, Any, T]], at_once: int) -> Iterator[T]:
        """The result of each work, in order; up to `at_once` of them run, and all that run end with the iteration."""
        waiting: deque[Future[T]] = deque()
        try:
            for work in works:
                waiting.append(asyncio.run_coroutine_threadsafe(work, self._loop))
                if len(waiting) == at_once:
                    yield _result(waiting)
            while waiting:
                yield _result(waiting)
        finally:
            for future in waiting:
                future.cancel()
            # Who drops the iteration later than the loop finds that everything in it has ended.
            if waiting and self._thread.is_alive():
                asyncio.run_coroutine_threadsafe(_settled(), self._loop).result()

    def close(self) -> None:
        """End what runs, the loop and its thread."""
        asyncio.run_coroutine_threadsafe(_ended(), self._loop).result()
        self.stop()
        self._loop.close()

    def stop(self) -> None:
        """End the thread alone; what runs in the loop goes on when somebody else runs it."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()


async def _settled() -> None:
    """Wait until all that was cancelled has ended."""
    cancelled = [task for task in asyncio.all_tasks() if task.cancelling()]
    await asyncio.gather(*cancelled, return_exceptions=True)


async def _ended() -> None:
    """End everything that runs in this loop."""
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


def _result(waiting: "deque[Future[T]]") -> T:
    """The first one's result; it stays among the waiting until it is there."""
    result = waiting[0].result()
    waiting.popleft()
    return result
