"""A request's trace reaches whatever asks the engine for it, and nobody else."""

import asyncio
from collections.abc import AsyncGenerator

import pytest

from softspec.engine.trace import RequestTrace, current_trace, traced


async def seen(closed: list[bool]) -> AsyncGenerator[RequestTrace | None, None]:
    """What a generator finds at each of its steps."""
    try:
        while True:
            yield current_trace.get()
    finally:
        closed.append(True)


def test_generator_finds_its_trace_at_every_step_and_its_reader_none() -> None:
    async def read() -> list[tuple[RequestTrace | None, RequestTrace | None]]:
        items = traced(seen([]), trace)
        return [(await anext(items), current_trace.get()) for _ in range(3)]

    trace = RequestTrace()

    assert asyncio.run(read()) == [(trace, None)] * 3


def test_generators_read_in_turn_find_each_its_own() -> None:
    async def read() -> list[RequestTrace | None]:
        one, two = traced(seen([]), first), traced(seen([]), second)
        return [await anext(items) for items in (one, two, one)]

    first, second = RequestTrace(), RequestTrace()

    found = asyncio.run(read())

    assert [each is first for each in found] == [True, False, True]
    assert found[1] is second


def test_closing_it_closes_what_it_reads() -> None:
    async def read_and_close(closed: list[bool]) -> None:
        items = traced(seen(closed), RequestTrace())
        await anext(items)
        await items.aclose()

    closed: list[bool] = []

    asyncio.run(read_and_close(closed))

    assert closed == [True]


def test_error_passes_and_leaves_no_trace() -> None:
    async def broken() -> AsyncGenerator[int, None]:
        yield 1
        raise ValueError("torn")

    async def read() -> RequestTrace | None:
        items = traced(broken(), RequestTrace())
        with pytest.raises(ValueError, match="torn"):
            [_ async for _ in items]
        return current_trace.get()

    assert asyncio.run(read()) is None
