"""What one responsibility is about, a completion (SFT) or a preference (DPO), and what the loop asks of either.

In: a `TrainConfig`. Out: the `Objective` that it names: how units are read, and how likely members find them. The
training loop treats both alike.
"""

from collections.abc import Iterator, Sequence
from typing import Protocol, cast

from torch import Tensor

from softspec.train.config import TrainConfig
from softspec.train.data.reading import PlacedRows, Reading
from softspec.train.data.units import Example, Preference, Unit, UnitT
from softspec.train.members.members import Members
from softspec.train.members.pairs import Pairs
from softspec.train.objective.completions import Completions
from softspec.train.objective.preferences import Preferences
from softspec.train.objective.routing import Table
from softspec.train.processes import Processes


class UnitBatch(Protocol):
    """The units of a micro-batch, whose prompts have run as far as members share them."""

    def loglik(self, pairs: Pairs) -> Tensor:
        """How likely members find the units of these pairs, (R,), or their tokens, (M,); nats, float64."""

    def table(self) -> Table:
        """What every member makes of every unit or token, in one pass."""


class Objective(Protocol[UnitT]):
    """What a kind of unit has to offer: how it is read, and how K members are asked about it."""

    @property
    def spare(self) -> UnitT:
        """The shortest unit, for passes of which nothing comes."""

    def read(self, rows: PlacedRows, reading: Reading) -> Iterator[UnitT]:
        """Units of rows with their places, tokenised, one at a time.

        Raises:
            DataError: a row is wrong.
        """

    def with_reference(
        self, members: Members, units: Sequence[UnitT], processes: Processes
    ) -> Sequence[UnitT]:
        """The units with what the base says of them, if that is needed; once for a whole run."""

    def batch(self, members: Members, units: Sequence[UnitT]) -> UnitBatch:
        """These units, ready for as many passes as are needed."""


def objective_of(config: TrainConfig) -> Objective[Unit]:
    """The objective that `config.objective` names."""
    objective: Objective[Example] | Objective[Preference] = (
        Preferences(config) if config.objective == "dpo" else Completions(config)
    )
    # It is given the units that it reads itself, so all are of its kind.
    return cast("Objective[Unit]", objective)
