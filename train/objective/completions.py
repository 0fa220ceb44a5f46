"""Completions as units (SFT): how likely members find each example, or each of its tokens.

In: `Members` and `Example`s. Out: log-likelihoods in nats, differentiable in the adapters. Knows nothing of
responsibilities or the optimizer.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from softspec.train.config import TrainConfig
from softspec.train.data.reading import PlacedRows, Reading, read_examples
from softspec.train.data.units import SPARE_EXAMPLE, Example
from softspec.train.members.likelihood import Batch, collate, pair_loglik, token_loglik, with_trunk
from softspec.train.members.members import Members
from softspec.train.members.pairs import Pairs
from softspec.train.objective.routing import Table
from softspec.train.processes import Processes


@dataclass(frozen=True)
class CompletionBatch:
    """B examples whose trunks have run; `by_token`: it is their tokens that are routed."""

    members: Members
    padded: Batch
    by_token: bool

    def loglik(self, pairs: Pairs) -> Tensor:
        """log p(completion | prompt) of each pair, (R,), or of their tokens, pair after pair, (M,); nats, float64."""
        if self.by_token:
            return token_loglik(self.members, self.padded, pairs).double()
        return pair_loglik(self.members, self.padded, pairs)

    def table(self) -> Table:
        """What every member makes of every example or token."""
        num_members = self.members.num_members
        loglik = self.loglik(Pairs.all_pairs(num_members, self.padded.size, self.padded.tail_ids.device))
        return Table(loglik.view(num_members, -1), margins=loglik.new_zeros(num_members, 0))


@dataclass(frozen=True)
class Completions:
    """The objective whose unit is an `Example`."""

    config: TrainConfig

    @property
    def spare(self) -> Example:
        """The shortest unit, for passes of which nothing comes."""
        return SPARE_EXAMPLE

    def read(self, rows: PlacedRows, reading: Reading) -> Iterator[Example]:
        """Examples of rows, tokenised, one at a time; errors as `read_examples`."""
        return read_examples(rows, reading)

    def with_reference(
        self, members: Members, units: Sequence[Example], processes: Processes
    ) -> Sequence[Example]:
        """The examples as they are: nothing is compared with the base."""
        return units

    def batch(self, members: Members, units: Sequence[Example]) -> CompletionBatch:
        """Examples ready for as many passes as are needed."""
        padded = with_trunk(members, collate(units, self.config.activation, members.model.device))
        return CompletionBatch(members, padded, by_token=self.config.granularity == "token")
