"""The Gaussian prior on adapters: an L2 pull of every member towards where it began, or towards zero.

In: a `TrainConfig` and untrained `Members`. Out: its penalty and gradients. Atoms have no entropy against a continuous
prior, so only the cross-entropy is kept.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from softspec.train.config import TrainConfig
from softspec.train.members.members import Members


@dataclass(frozen=True)
class GaussianPrior:
    """A normal density around `mean`, in the shapes of the members' parameters.

    `scale` turns squared distances into nats per example: lambda / (2 std^2 N).
    """

    mean: Sequence[Tensor]
    scale: float

    def penalty(self, members: Members, log_weights: Tensor) -> Tensor:
        """The prior's part of the objective, scalar, nats per example: what it adds to the mean loss."""
        distances = members.squared_distance(self.mean).double()
        return self.scale * (log_weights.exp() * distances).sum()

    def add_gradients(self, members: Members, log_weights: Tensor) -> float:
        """Add the gradients of K times the penalty to the members; returns the penalty, nats per example."""
        penalty = self.penalty(members, log_weights)
        (members.num_members * penalty).backward()
        return penalty.item()


def prior_of(config: TrainConfig, members: Members, num_examples: int) -> GaussianPrior | None:
    """The prior that the configuration asks for, around untrained members or zero; None for a strength of 0."""
    if not config.prior_strength:
        return None
    mean = [weight.detach() * (config.prior_mean == "init") for weight in members.parameters()]
    return GaussianPrior(mean, config.prior_strength / (2 * config.prior_std**2 * num_examples))
