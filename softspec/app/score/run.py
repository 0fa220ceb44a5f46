"""One run over a file: rows go into the engine in their order, and their scores come out in the same.

In: rows, vLLM's arguments. Out: lines, and a summary. Imports vLLM, so import it late: the environment must be complete
by then.
"""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import aclosing, suppress
from pathlib import Path

from tqdm import tqdm

from softspec.app.score.results import Score, Summary, Wanted, line, opened
from softspec.app.score.rows import AskedRow, Survey, read_asked
from softspec.console import unbroken_stderr
from softspec.engine.front.ensemble import load_ensembles
from softspec.engine.start.local import LocalEngine, open_engine
from softspec.errors import DataError, UserError
from softspec.server.scores.scorer import scored
from softspec.train.data.reading import Reading

IN_FLIGHT = 64
"""Rows that are waited for at once; how many of their answers run at once is the engine's to say."""


async def run(
    ensemble: Path,
    arguments: Sequence[str],
    data: Path,
    reading: Reading,
    found: Survey,
    wanted: Wanted,
    summary: Summary,
) -> None:
    """Score all rows; `summary` and the output's file always have the rows so far."""
    loaded = load_ensembles([ensemble])
    async with open_engine(arguments, loaded) as engine:
        with opened(wanted.output) as file, _bar(found.num_rows) as bar:
            rows = read_asked(data, reading)
            async with aclosing(
                _in_order(engine, loaded[0].name, rows, wanted.detail == "tokens")
            ) as answered:
                async for scores in answered:
                    if file is not None:
                        file.write(line(summary.rows, scores))
                        file.flush()
                    summary.add(scores)
                    bar.update()


def _bar(num_rows: int) -> tqdm:
    return tqdm(
        total=num_rows, unit="row", desc="scoring", mininterval=1.0, smoothing=0, file=unbroken_stderr()
    )


async def _in_order(
    engine: LocalEngine, name: str, rows: Iterable[AskedRow], with_tokens: bool
) -> AsyncGenerator[list[Score], None]:
    """The scores of each row, while the rows after it are being computed."""
    waiting: deque[asyncio.Task[list[Score]]] = deque()
    try:
        for row in rows:
            waiting.append(asyncio.create_task(_scores_of(engine, name, row, with_tokens)))
            if len(waiting) == IN_FLIGHT:
                yield await waiting.popleft()
        while waiting:
            yield await waiting.popleft()
    finally:
        for task in waiting:
            task.cancel()
        for task in waiting:
            with suppress(asyncio.CancelledError, Exception):
                await task


async def _scores_of(engine: LocalEngine, name: str, row: AskedRow, with_tokens: bool) -> list[Score]:
    try:
        traces = await engine.score(name, row.prompt_ids, row.answers)
    except UserError as error:
        raise DataError(f"{row.place}: {error}") from error
    return [
        {"index": number, **scored(trace, with_tokens, engine.decode)} for number, trace in enumerate(traces)
    ]
