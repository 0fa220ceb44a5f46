"""What held-out units come to under members: a table of log-likelihoods, and how it is summed up and compared.

In: `Members`, units, or tables that were made earlier. Out: tables, sums by cluster, differences with their standard
errors. Decides nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from softspec.maths.mixture import uniform_log_weights
from softspec.maths.renyi import renyi_loss
from softspec.train.config import TrainConfig
from softspec.train.data.units import Unit, in_batches
from softspec.train.members.members import Members
from softspec.train.objective.objective import objective_of
from softspec.train.selection.split import clusters, pieces

RESAMPLES = 2000


@dataclass(frozen=True)
class Frame:
    """How N scored items become C columns, the units of routing, and these J clusters, the units of chance.

    Item n is in column `column_of[n]`, where it counts `item_weights[n]` times; column c counts `weights[c]` times and
    is in cluster `cluster_of[c]`; the examples of cluster j weigh `sizes[j]` together. Every number of a `Frame` is in
    nats per example, as those of training.
    """

    column_of: Tensor
    item_weights: Tensor
    weights: Tensor
    cluster_of: Tensor
    sizes: Tensor

    def columns(self, items: Tensor) -> Tensor:
        """Log-likelihoods of columns, (K, C), from those of items, (K, N)."""
        sums = items.new_zeros(len(items), len(self.weights))
        return sums.index_add(1, self.column_of, self.item_weights * items)

    def losses(self, loglik: Tensor, log_weights: Tensor | None = None, renyi_alpha: float = 1.0) -> Tensor:
        """The alpha-Renyi loss of each cluster, summed, (J,), nats; at alpha 1 the mixture's NLL.

        Args:
            loglik: (K, C). log_weights: (K,), uniform when empty.
        """
        prior = uniform_log_weights(len(loglik)) if log_weights is None else log_weights
        values = self.weights * renyi_loss(loglik, prior, renyi_alpha)
        return torch.zeros_like(self.sizes).index_add(0, self.cluster_of, values)

    def mean(self, losses: Tensor) -> float:
        """Nats per example of losses by cluster, (J,)."""
        return (losses.sum() / self.sizes.sum()).item()

    def difference(self, losses: Tensor, others: Tensor) -> "Difference":
        """How much higher the first losses (J,) are, per example, with a standard error over clusters.

        The error is that of a ratio of sums, by linearisation: clusters are the draws, and their sizes are random too.
        """
        gaps, count = losses - others, len(self.sizes)
        value = gaps.sum() / self.sizes.sum()
        spread = (gaps - value * self.sizes).square().sum() * count / (count - 1)
        return Difference(value.item(), (spread.sqrt() / self.sizes.sum()).item())

    def interval(self, losses: Tensor, others: Tensor, level: float = 0.95) -> tuple[float, float]:
        """A bootstrap interval of the same difference: percentiles over `RESAMPLES` paired draws of clusters."""
        generator, gaps, count = torch.Generator().manual_seed(0), losses - others, len(self.sizes)
        means = []
        for _ in range(RESAMPLES):
            drawn = torch.randint(count, (count,), generator=generator)
            means.append(gaps[drawn].sum() / self.sizes[drawn].sum())
        tail = (1 - level) / 2
        low, high = torch.stack(means).quantile(gaps.new_tensor([tail, 1 - tail])).tolist()
        return low, high


@dataclass(frozen=True)
class Difference:
    """A mean paired difference and its standard error, nats per example."""

    value: float
    standard_error: float

    @property
    def is_clear(self) -> bool:
        """Whether it is above zero by more than one standard error."""
        return self.value > self.standard_error


def frame_of(units: Sequence[Unit], config: TrainConfig) -> Frame:
    """How these units are routed and drawn under the configured granularity."""
    unit_weights = torch.tensor([unit.weight for unit in units], dtype=torch.float64)
    cluster_of = _numbers(clusters(units, config))
    sizes = torch.zeros(int(cluster_of.max()) + 1, dtype=torch.float64).index_add(0, cluster_of, unit_weights)
    if config.granularity == "group":
        column_of = _numbers(pieces(units, config))
        count = int(column_of.max()) + 1
        clusters_of_columns = torch.zeros(count, dtype=torch.long).index_copy(0, column_of, cluster_of)
        ones = torch.ones(count, dtype=torch.float64)
        return Frame(column_of, unit_weights, ones, clusters_of_columns, sizes)
    if config.granularity == "token":
        lengths = torch.tensor([len(unit.completions[0].completion_ids) for unit in units])
        unit_weights, cluster_of = (
            unit_weights.repeat_interleave(lengths),
            cluster_of.repeat_interleave(lengths),
        )
    items = torch.arange(len(unit_weights))
    return Frame(items, torch.ones_like(unit_weights), unit_weights, cluster_of, sizes)


@torch.no_grad()
def score(members: Members, units: Sequence[Unit], config: TrainConfig, frame: Frame) -> Tensor:
    """Log-likelihoods of the frame's columns, (K, C), nats, float64; labels of preferences are taken as they are."""
    objective = objective_of(config.model_copy(update={"label_smoothing": 0.0}))
    parts = in_batches(units, config.micro_batch_size)
    return frame.columns(
        torch.cat([objective.batch(members, part).table().loglik.double().cpu() for part in parts], 1)
    )


def _numbers(names: Sequence[str]) -> Tensor:
    known: dict[str, int] = {}
    return torch.tensor([known.setdefault(name, len(known)) for name in names])
