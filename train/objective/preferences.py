"""Preferences as units (DPO): how likely members find it that the chosen completion is preferred.

In: `Members` and `Preference`s. Out: margins and log-likelihoods in nats, differentiable in the adapters. The
reference is the base with all adapters off. Knows nothing of responsibilities or the optimizer.

Source: Rafailov et al. 2023 (arXiv:2305.18290); its use in the alpha-Renyi loss is this project's.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from softspec.artefact.activation import Activation
from softspec.maths.renyi import dpo_loglik, weighted_mean
from softspec.train.config import TrainConfig
from softspec.train.data.preferences import read_preferences
from softspec.train.data.reading import PlacedRows, Reading
from softspec.train.data.units import SPARE_PREFERENCE, Preference, WithReference, in_batches
from softspec.train.members.likelihood import Batch, base_loglik, collate, pair_loglik, with_trunk
from softspec.train.members.members import Members
from softspec.train.members.pairs import Pairs
from softspec.train.objective.routing import Table
from softspec.train.processes import Processes, is_main_process


@dataclass(frozen=True)
class PreferenceBatch:
    """B preferences whose trunks have run.

    `padded` is from `collate_preferences`; `reference` (B,) are the base's margins, nats; `beta` and `label_smoothing`
    as for `dpo_loglik`.
    """

    members: Members
    padded: Batch
    reference: Tensor
    beta: float
    label_smoothing: float

    def margins(self, pairs: Pairs) -> Tensor:
        """How much more than the base the members prefer the chosen completions; (R,), nats, float64.

        Args:
            pairs: which member on which preference.
        """
        num_members, size = self.members.num_members, len(self.reference)
        if pairs.is_every_pair:
            both = Pairs.all_pairs(num_members, self.padded.size, self.reference.device)
            table = pair_loglik(self.members, self.padded, both).view(num_members, 2, size)
            chosen, rejected = table[:, 0].flatten(), table[:, 1].flatten()
        else:
            examples = torch.cat([pairs.examples, pairs.examples + size])
            both = Pairs(examples, pairs.members.repeat(2), self.padded.size)
            chosen, rejected = pair_loglik(self.members, self.padded, both).chunk(2)
        return chosen - rejected - self.reference[pairs.examples]

    def loglik(self, pairs: Pairs) -> Tensor:
        """log p(chosen is preferred) of each pair, (R,), nats, float64."""
        return dpo_loglik(self.margins(pairs), self.beta, self.label_smoothing)

    def table(self) -> Table:
        """What every member makes of every preference, with the margins behind it."""
        num_members = self.members.num_members
        every = Pairs.all_pairs(num_members, len(self.reference), self.reference.device)
        margins = self.margins(every).view(num_members, -1)
        return Table(dpo_loglik(margins, self.beta, self.label_smoothing), margins)


@dataclass(frozen=True)
class Preferences:
    """The objective whose unit is a `Preference`."""

    config: TrainConfig

    @property
    def spare(self) -> Preference:
        """The shortest unit, for passes of which nothing comes."""
        return SPARE_PREFERENCE

    def read(self, rows: PlacedRows, reading: Reading) -> Iterator[Preference]:
        """Preferences of rows, tokenised, one at a time; errors as `read_preferences`."""
        return read_preferences(rows, reading)

    def with_reference(
        self, members: Members, units: Sequence[Preference], processes: Processes
    ) -> Sequence[Preference]:
        """The preferences with the base's margins, from one pass over the data that the processes share."""
        own = processes.own_indices(len(units))
        margins = reference_margins(members, units, own, self.config.activation, self.config.micro_batch_size)
        return WithReference(units, processes.gather_dealt(margins, len(units)))

    def batch(self, members: Members, units: Sequence[Preference]) -> PreferenceBatch:
        """Preferences ready for as many passes as are needed."""
        padded = with_trunk(members, collate_preferences(members, units, self.config.activation))
        known = [unit.reference_margin for unit in units]
        reference = torch.tensor(known, dtype=torch.float64, device=members.model.device)
        return PreferenceBatch(members, padded, reference, self.config.beta, self.config.label_smoothing)


def reference_margins(
    members: Members,
    preferences: Sequence[Preference],
    indices: Sequence[int],
    activation: Activation,
    batch_size: int,
) -> list[float]:
    """log p(chosen) - log p(rejected) under the base of the preferences with these indices, nats."""
    margins: list[float] = []
    bar = tqdm(
        desc="asking the base", total=len(indices), unit="pair", delay=2, disable=not is_main_process()
    )
    for part, counts in members.rounds(list(in_batches(indices, batch_size)), []):
        bar.update(len(part))
        units = [preferences[index] for index in part] or [SPARE_PREFERENCE]
        batch = collate_preferences(members, units, activation)
        chosen, rejected = base_loglik(members, batch)[0].chunk(2)
        margins += (chosen - rejected).tolist() if counts else []
    bar.close()
    return margins


def mean_margins(margins: Tensor, weights: Tensor) -> list[float]:
    """The mean of each member's margins (K, N), nats, over preferences with these weights (N,)."""
    return weighted_mean(margins, weights).tolist()


def accuracies(margins: Tensor, weights: Tensor) -> list[float]:
    """The share of each member's margins (K, N) that have the right sign, by the preferences' weights (N,)."""
    return weighted_mean(margins > 0, weights).tolist()


def collate_preferences(members: Members, preferences: Sequence[Preference], activation: Activation) -> Batch:
    """All B chosen completions, then all rejected ones: a batch of 2 B."""
    examples = [each.chosen for each in preferences] + [each.rejected for each in preferences]
    return collate(examples, activation, members.model.device)
