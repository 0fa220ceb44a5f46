"""A new start for a member that has starved: beside the member that has the most to do where the ensemble does badly.

In: a `Training`, the log-likelihoods of a step and the starved member. Out: changed weights and optimizer state.
"""

import torch

from softspec.maths.mixture import sequence_loglik
from softspec.train.loop.passes import Pass
from softspec.train.loop.state import Training

WORST_SHARE = 0.25
"""Of the units of a step, those that are served worst."""
NOISE = 0.1
"""By which a new member differs from the one it comes from, as part of the size of its weights."""


def reseed(training: Training, done: Pass, member: int, step: int) -> int:
    """Make `member` a noisy copy of the one to which most of the worst-served units go; returns which one that is.

    They share these units from then on, and the noise lets them come apart.
    """
    donor = server_of_the_worst(training, done)
    generator = torch.Generator().manual_seed((training.config.seed + step) * 1_000_003 + member)
    with torch.no_grad():
        for weight in training.members.parameters():
            source = weight[donor].clone()
            noise = torch.randn(source.shape, generator=generator).to(source)
            weight[member] = source + NOISE * source.square().mean().sqrt() * noise
            for moment in training.optimizer.state[weight].values():
                if moment.shape == weight.shape:
                    moment[member] = moment[donor]
    return donor


def server_of_the_worst(training: Training, done: Pass) -> int:
    """The member with the most responsibility for the units that the mixture explains worst."""
    shares = done.routing.responsibilities(done.loglik, training.log_weights)
    explained = sequence_loglik(training.log_weights, done.routing.units(done.loglik))
    worst = explained.topk(max(1, int(WORST_SHARE * len(explained))), largest=False).indices
    return int(shares[:, worst].sum(1).argmax())
