"""A progress bar on stderr, where somebody sits before a terminal.

In: what is iterated. Out: the same, one by one.
"""

from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

from softspec.console import unbroken_stderr

T = TypeVar("T")


def watched(
    results: Iterable[T], wanted: bool, desc: str, unit: str, total: int | None = None
) -> Iterator[T]:
    """The results as they come, counted on a bar if one is wanted and stderr is a terminal."""
    bar = tqdm(
        total=total,
        desc=desc,
        unit=unit,
        mininterval=0.5,
        smoothing=0,
        file=unbroken_stderr(),
        disable=None if wanted else True,  # None: where stderr is no terminal
    )
    with bar:
        for result in results:
            yield result
            bar.update()
