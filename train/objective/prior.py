"""The Gaussian prior on adapters: an L2 pull of every member towards where it began, or towards zero.

In: a `Training`. Out: its penalty and gradients. Atoms have no entropy against a continuous prior, so only the
cross-entropy is kept.
"""

from torch import Tensor

from softspec.train.config import TrainConfig
from softspec.train.loop.state import Training
from softspec.train.members.members import Members


def prior_mean(config: TrainConfig, members: Members) -> list[Tensor]:
    """Where the prior pulls untrained members, in the shapes of their parameters; nothing where there is no prior."""
    if not config.prior_strength:
        return []
    return [weight.detach() * (config.prior_mean == "init") for weight in members.parameters()]


def add_prior_gradients(training: Training) -> float:
    """Those of the prior in one step; returns its penalty, nats per example."""
    penalty = prior_penalty(training)
    (training.config.num_members * penalty).backward()
    return penalty.item()


def prior_penalty(training: Training) -> Tensor:
    """The Gaussian prior's part of the objective, nats per example: what it adds to the mean `loss`."""
    config = training.config
    distances = training.members.squared_distance(training.prior_mean).double()
    scale = config.prior_strength / (2 * config.prior_std**2 * len(training.examples))
    return scale * (training.log_weights.exp() * distances).sum()
