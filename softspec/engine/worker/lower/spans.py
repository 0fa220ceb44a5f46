"""Which row of a step computes the lower layers for which other rows: pure, without tensors.

In: what each row of a step computes. Out: for each row the row that computes its lower layers, and how many layers
that is. The members of a group see the same tokens, so below the first layer that any of them adapts they are one model
with one state. Knows no model and no model runner; needs neither vLLM nor torch.
"""

from collections.abc import Sequence
from typing import NamedTuple

from softspec.engine.wire import Seat


class Span(NamedTuple):
    """What a row computes in a step: so many tokens from position `first` on; `seat` is None outside groups."""

    seat: Seat | None
    first: int
    tokens: int

    def covers(self, other: "Span") -> bool:
        """Whether all positions of the other are among these."""
        return self.first <= other.first and other.first + other.tokens <= self.first + self.tokens


def sources(spans: Sequence[Span], least: int) -> list[int]:
    """For each row the row that computes its lower layers: one of its own group, or itself.

    Rows of a group may be at different positions, as a preempted one is, and then compute for themselves.

    Args:
        least: so many tokens are computed at least, if there are as many: fewer are slower on a CPU.
    """
    chosen = list(range(len(spans)))
    groups: dict[str, list[tuple[int, int, int]]] = {}
    for row, (seat, _, tokens) in enumerate(spans):
        if seat is not None and seat.spec.first_layer:
            groups.setdefault(seat.group_id, []).append((-tokens, seat.member, row))
    dropped = []
    for group in groups.values():
        keepers: list[int] = []
        for _, _, row in sorted(group):  # those of most tokens first
            source = next((keeper for keeper in keepers if spans[keeper].covers(spans[row])), None)
            if source is None:
                keepers.append(row)
            else:
                chosen[row] = source
                dropped.append(row)
    kept = sum(span.tokens for row, span in enumerate(spans) if chosen[row] == row)
    while dropped and kept < least:
        row = dropped.pop()
        chosen[row] = row
        kept += spans[row].tokens
    return chosen


def shared_depth(spans: Sequence[Span], chosen: Sequence[int]) -> int:
    """How many layers are computed once for all rows that have a source; 0 if every row is its own."""
    return min(
        (span.seat.spec.first_layer for row, span in enumerate(spans) if span.seat and chosen[row] != row),
        default=0,
    )


def bare_depth(spans: Sequence[Span]) -> int:
    """How many layers no row of the step has an adapter in; an ordinary request may have one anywhere."""
    return min((span.seat.spec.first_layer if span.seat else 0 for span in spans), default=0)
