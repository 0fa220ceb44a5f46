"""How far members are apart, pair by pair: for reports on an ensemble's diversity, not for every decode step.

In: members' log-probabilities (..., K, V). Out: distances in nats. Knows nothing of weights or engines.
"""

import math

import torch
from torch import Tensor

from softspec.maths.uncertainty import entropy


def jensen_shannon_matrix(member_logprobs: Tensor) -> Tensor:
    """Jensen-Shannon divergence of every pair of members, (..., K, K), nats, symmetric, in [0, log 2]."""
    first, second = member_logprobs[..., :, None, :], member_logprobs[..., None, :, :]
    halves = torch.logaddexp(first, second) - math.log(2)
    return (entropy(halves) - (entropy(first) + entropy(second)) / 2).clamp_min(0)


def functional_diversity(member_logprobs: Tensor) -> Tensor:
    """Mean Jensen-Shannon divergence of two different members, (...), nats; 0 for a single member."""
    num_members = member_logprobs.shape[-2]
    pairs = num_members * (num_members - 1)
    return jensen_shannon_matrix(member_logprobs).sum((-2, -1)) / max(pairs, 1)
