"""Questions in the order in which they are cheap: prompts of like length together, no more than memory has room for.

In: prompts and answers as ids. Out: batches of their numbers. Knows no model but by its limits.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

from softspec.artefact.activation import shared_tokens

T = TypeVar("T")


@dataclass(frozen=True)
class Limits:
    """What one pass may hold.

    `rows_at_once` are read before the first is answered; `tokens_at_once` is the most tokens of all members together,
    those in caches included. `has_windows`: attention reaches back a number of positions, padding included, so prompts
    of one batch must have padding at their beginning only.
    """

    num_members: int
    block_size: int | None
    rows_at_once: int
    tokens_at_once: int
    has_windows: bool

    def at_once(self, length: int) -> int:
        """How many sequences of this length there may be, at least one."""
        return max(1, self.tokens_at_once // (self.num_members * length))

    def batches(self, lengths: Sequence[int], more: Sequence[int]) -> Iterator[list[int]]:
        """The numbers of prompts of these lengths, to which up to `more` tokens are added, batch by batch."""
        kinds = [self._kind(length) for length in lengths]
        order = sorted(range(len(lengths)), key=lambda number: (kinds[number], lengths[number]))
        batch: list[int] = []
        longest = 0
        for number in order:
            longest = max(longest, lengths[number] + more[number])
            if batch and (len(batch) == self.at_once(longest) or kinds[number] != kinds[batch[0]]):
                yield batch
                batch, longest = [], lengths[number] + more[number]
            batch.append(number)
        if batch:
            yield batch

    def _kind(self, length: int) -> int:
        """Prompts of different kinds cannot be in one batch: those with trunks and tails of different lengths."""
        return length - shared_tokens(self.block_size, length) if self.has_windows and self.block_size else 0


def windows(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Runs of `size` items; the last one may be shorter."""
    rest = iter(items)
    while window := list(islice(rest, size)):
        yield window


def numbered(items: Iterable[T]) -> tuple[list[T], list[int]]:
    """The different items, in the order of their first place, and for each item the number of its like."""
    numbers: dict[T, int] = {}
    places = [numbers.setdefault(item, len(numbers)) for item in items]
    return list(numbers), places
