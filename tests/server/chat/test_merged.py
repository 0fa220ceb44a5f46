"""Streams read as one: in the order in which they come, and closed together whatever happens to the reader."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import anyio
import pytest

from softspec.server.chat.merged import ENDED, Merged


class Tap:
    """A stream that a test opens by the item; `closed` says whether its reader left it properly."""

    def __init__(self) -> None:
        self.items: asyncio.Queue[Any] = asyncio.Queue()
        self.read = 0
        self.closed = False

    async def stream(self) -> AsyncGenerator[Any, None]:
        try:
            while (item := await self.items.get()) is not None:
                if isinstance(item, Exception):
                    raise item
                self.read += 1
                yield item
        finally:
            await asyncio.sleep(0)  # a clean-up that waits, as a socket's does
            self.closed = True

    def pour(self, *items: Any) -> None:
        for item in items:
            self.items.put_nowait(item)


def test_one_stream_is_read_no_further_than_its_reader_is() -> None:
    async def read() -> int:
        tap, merged = Tap(), Merged()
        merged.add(0, tap.stream())
        tap.pour("a", "b", "c", None)
        async with aclosing(merged), aclosing(merged.items()) as items:
            await anext(items)
            return tap.read

    assert asyncio.run(read()) == 1


def test_stream_that_joins_later_comes_between() -> None:
    async def read() -> list[tuple[int, Any]]:
        first, second, merged, seen = Tap(), Tap(), Merged(), []
        merged.add(0, first.stream())
        first.pour("a")
        async with aclosing(merged), aclosing(merged.items()) as items:
            async for number, item in items:
                seen.append((number, item))
                if item == "a":
                    merged.add(1, second.stream())
                    second.pour("x")
                elif item == "x":
                    first.pour("b", None)
                elif item == "b":
                    second.pour("y", None)
        assert (first.closed, second.closed) == (True, True)
        return seen

    seen = asyncio.run(read())

    assert [each for each in seen if each[1] is not ENDED] == [(0, "a"), (1, "x"), (0, "b"), (1, "y")]
    assert sorted(number for number, item in seen if item is ENDED) == [0, 1]


def test_error_of_one_stream_reaches_the_reader_and_closes_the_others() -> None:
    async def read() -> bool:
        first, second, merged = Tap(), Tap(), Merged()
        merged.add(0, first.stream())
        merged.add(1, second.stream())
        second.pour(ValueError("broken"))
        with pytest.raises(ValueError, match="broken"):
            async with aclosing(merged), aclosing(merged.items()) as items:
                await anext(items)
        return first.closed

    assert asyncio.run(read())


def test_reader_that_is_cancelled_again_and_again_still_closes_all() -> None:
    """Starlette cancels the task of a client that left through anyio, whose cancellation does not stop at one."""

    async def read() -> tuple[bool, bool]:
        first, second, merged = Tap(), Tap(), Merged()
        merged.add(0, first.stream())
        merged.add(1, second.stream())

        async def reader() -> None:
            async with aclosing(merged), aclosing(merged.items()) as items:
                await anext(items)

        async with anyio.create_task_group() as group:
            group.start_soon(reader)
            await asyncio.sleep(0.01)
            group.cancel_scope.cancel()
        await asyncio.sleep(0.01)
        return first.closed, second.closed

    assert asyncio.run(read()) == (True, True)
