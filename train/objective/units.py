"""What one responsibility is about: a completion (SFT), or a preference between two completions (DPO).

In: a `TrainConfig`. Out: how its data are read, how likely members find them, and how they are scored. The training
loop treats both alike; units are `Example`s or `Preference`s.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from softspec.maths.renyi import dpo_loglik
from softspec.train.config import TrainConfig
from softspec.train.data.preferences import Preference, WithReference, read_preferences
from softspec.train.data.rows import Example, PlacedRows, read_examples
from softspec.train.members.likelihood import collate, row_loglik, token_loglik, with_trunk
from softspec.train.members.members import Members
from softspec.train.members.pairs import Rows
from softspec.train.objective.preferences import (
    collate_pairs,
    margins,
    reference_margins,
    score_margins,
    summarise_margins,
)
from softspec.train.processes import Processes
from softspec.train.result.scores import score_examples, summarise_scores

Likelihood = Callable[[Rows], tuple[Tensor, Tensor | None]]


class Objective(ABC):
    """K members, B units."""

    def __init__(self, config: TrainConfig) -> None:
        self.config = config

    @abstractmethod
    def read(
        self, rows: PlacedRows, tokenizer: PreTrainedTokenizerBase, eos_ids: Collection[int]
    ) -> Iterator[Any]:
        """Tokenised units of rows with their places, one at a time.

        Raises:
            DataError: a row is wrong.
        """

    @abstractmethod
    def with_reference(self, members: Members, units: Sequence[Any], processes: Processes) -> Sequence[Any]:
        """The units with what the base says of them, if that is needed; once for a whole run."""

    @abstractmethod
    def likelihood(self, members: Members, units: Sequence[Any]) -> "Likelihood":
        """A function of the rows to run, for as many passes over these units as are needed.

        It returns log-likelihoods, (R,), nats, float64 (of the rows' tokens, row after row, where tokens are routed),
        and the margins of preferences, (R,), nats.
        """

    @abstractmethod
    def score(
        self, members: Members, units: Sequence[Any], log_weights: Tensor, processes: Processes
    ) -> dict[str, Any]:
        """The facts that `ensemble.json` keeps as `held_out`; each process scores a part of the units."""

    @abstractmethod
    def completions(self, unit: Any) -> tuple[Example, ...]:
        """The examples of a unit."""


class Completions(Objective):
    """SFT: the unit is an `Example`."""

    def read(
        self, rows: PlacedRows, tokenizer: PreTrainedTokenizerBase, eos_ids: Collection[int]
    ) -> Iterator[Example]:
        return read_examples(rows, tokenizer, self.config.max_length, eos_ids)

    def with_reference(
        self, members: Members, units: Sequence[Example], processes: Processes
    ) -> Sequence[Example]:
        return units

    def likelihood(self, members: Members, units: Sequence[Example]) -> "Likelihood":
        batch = with_trunk(members, collate(units, self.config.activation, members.model.device))
        if self.config.granularity == "token":
            return lambda rows: (token_loglik(members, batch, rows).double(), None)
        return lambda rows: (row_loglik(members, batch, rows), None)

    def score(
        self, members: Members, units: Sequence[Example], log_weights: Tensor, processes: Processes
    ) -> dict[str, Any]:
        config, parts = self.config, processes.deal(units)
        own = score_examples(
            members, parts[processes.index], log_weights, config.activation, config.micro_batch_size
        )
        scores = own.of_all([unit for part in parts for unit in part], processes.gather_columns)
        return summarise_scores(scores, log_weights.cpu(), config.renyi_alpha, config.weights_rule)

    def completions(self, unit: Example) -> tuple[Example, ...]:
        return (unit,)


class Preferences(Objective):
    """DPO: the unit is a `Preference`."""

    def read(
        self, rows: PlacedRows, tokenizer: PreTrainedTokenizerBase, eos_ids: Collection[int]
    ) -> Iterator[Preference]:
        return read_preferences(rows, tokenizer, self.config.max_length, eos_ids)

    def with_reference(
        self, members: Members, units: Sequence[Preference], processes: Processes
    ) -> Sequence[Preference]:
        own = processes.own_indices(len(units))
        gaps = reference_margins(members, units, own, self.config.activation, self.config.micro_batch_size)
        return WithReference(units, processes.gather_dealt(gaps, len(units)))

    def likelihood(self, members: Members, units: Sequence[Preference]) -> "Likelihood":
        batch = with_trunk(members, collate_pairs(members, units, self.config.activation))

        def of_rows(rows: Rows) -> tuple[Tensor, Tensor]:
            gaps = margins(members, units, batch, rows)
            return dpo_loglik(gaps, self.config.beta, self.config.label_smoothing), gaps

        return of_rows

    def score(
        self, members: Members, units: Sequence[Preference], log_weights: Tensor, processes: Processes
    ) -> dict[str, Any]:
        part = [units[index] for index in processes.own_indices(len(units))]
        gaps = processes.gather_columns(score_margins(members, part, self.config))
        return summarise_margins(gaps, log_weights, self.config)

    def completions(self, unit: Preference) -> tuple[Example, ...]:
        return unit.chosen, unit.rejected


def objective_of(config: TrainConfig) -> Objective:
    """The one that `config.objective` names."""
    return {"sft": Completions, "dpo": Preferences}[config.objective](config)
