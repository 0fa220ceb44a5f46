"""Several streams read as one: every item as it comes, with the number of the stream that it came from.

In: async generators, more of which may join while they are read. Out: their items. Nothing is read ahead of the reader
while there is one stream, and one item of each where there are several. Knows nothing of what the items mean.
"""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

ENDED: Any = object()
"""The last item of every stream."""


class Merged:
    """Streams by number; `items` ends with the last of them, and whoever leaves early calls `aclose`."""

    def __init__(self) -> None:
        self._streams: dict[int, AsyncGenerator[Any, None]] = {}
        self._next: dict[int, asyncio.Task[Any]] = {}

    def add(self, number: int, stream: AsyncGenerator[Any, None]) -> None:
        """Let one more stream join; a number belongs to one stream only."""
        self._streams[number] = stream

    async def items(self) -> AsyncGenerator[tuple[int, Any], None]:
        """What the streams yield, each ENDED at last; an error of any of them is raised."""
        while self._streams:
            if len(self._streams) == 1 and not self._next:
                [(number, stream)] = (
                    self._streams.items()
                )  # a task for every item would cost more than the item
                ready = {number: await anext(stream, ENDED)}
            else:
                ready = await self._first_of_all()
            for number, item in ready.items():
                if item is ENDED:
                    del self._streams[number]
                yield number, item

    async def _first_of_all(self) -> dict[int, Any]:
        for number, stream in self._streams.items():
            if number not in self._next:
                self._next[number] = asyncio.create_task(_next_of(stream))
        done, _ = await asyncio.wait(self._next.values(), return_when=asyncio.FIRST_COMPLETED)
        numbers = [number for number, task in self._next.items() if task in done]
        return {number: self._next.pop(number).result() for number in numbers}

    async def aclose(self) -> None:
        """Close all streams, also while the caller is being cancelled, again and again as anyio does."""
        await asyncio.shield(asyncio.create_task(self._close()))

    async def _close(self) -> None:
        for task in self._next.values():
            task.cancel()
        await asyncio.gather(*self._next.values(), return_exceptions=True)
        await asyncio.gather(*(stream.aclose() for stream in self._streams.values()), return_exceptions=True)


async def _next_of(stream: AsyncGenerator[Any, None]) -> Any:
    return await anext(stream, ENDED)
