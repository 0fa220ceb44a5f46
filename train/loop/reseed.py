"""A new start for a member that has starved: beside the member that has the most to do where the ensemble does badly.

In: members, their optimizer, what the units of a step came to, and the starved member. Out: changed weights and
optimizer state.
"""

import torch

from softspec.maths.mixture import sequence_loglik
from softspec.train.loop.optimizer import MembersAdamW
from softspec.train.loop.passes import Pass
from softspec.train.members.members import Members

WORST_SHARE = 0.25
"""The part of a step's units that counts as served worst."""
NOISE = 0.1
"""How far a new member is from the one it comes from, as part of the size of its weights."""


def reseed(members: Members, optimizer: MembersAdamW, done: Pass, member: int, seed: int) -> int:
    """Make `member` a noisy copy of the one to which most of the worst-served units go; returns which one that is.

    They share these units from then on, and the noise lets them come apart.
    """
    donor = server_of_the_worst(done)
    generator = torch.Generator().manual_seed(seed * 1_000_003 + member)
    with torch.no_grad():
        for weight in members.parameters():
            source = weight[donor].clone()
            noise = torch.randn(source.shape, generator=generator).to(source)
            weight[member] = source + NOISE * source.square().mean().sqrt() * noise
    optimizer.copy_moments(donor, member)
    return donor


def server_of_the_worst(done: Pass) -> int:
    """The member with the most responsibility for what costs the mixture most."""
    routing = done.routing
    shares = routing.responsibilities(done.loglik)
    explained = sequence_loglik(routing.log_weights, routing.bundles(done.loglik))
    costs = routing.loss_weights * -explained
    worst = costs.topk(max(1, int(WORST_SHARE * len(costs)))).indices
    return int((routing.loss_weights * shares)[:, worst].sum(1).argmax())
