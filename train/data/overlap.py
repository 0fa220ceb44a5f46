"""How many held-out units a run also trains on, which its held-out scores are then no measure of.

In: tokenised units as they are read. Out: the same units, and a count. Keeps 8 bytes or so of every unit.
"""

from collections.abc import Iterable, Iterator

from softspec.train.data.units import Unit, UnitT


class Overlap:
    """Remembers training units and counts the held-out ones among them: the same prompt and completions."""

    def __init__(self) -> None:
        self._trained: set[int] = set()
        self.shared = 0
        self.held_out = 0

    def training(self, units: Iterable[UnitT]) -> Iterator[UnitT]:
        """Training units as they come."""
        for unit in units:
            self._trained.add(_key(unit))
            yield unit

    def evaluation(self, units: Iterable[UnitT]) -> Iterator[UnitT]:
        """Held-out units as they come, after those of training."""
        for unit in units:
            self.held_out += 1
            self.shared += _key(unit) in self._trained
            yield unit


def _key(unit: Unit) -> int:
    return hash(tuple((each.prompt_ids, each.completion_ids) for each in unit.completions))
