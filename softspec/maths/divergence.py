"""Further ways to read how members differ, for reports and tests rather than for every decode step.

In: members' log-probabilities (..., K, V) and log-weights (..., K). Out: distances, bounds and other splits
of the uncertainty. Knows nothing of engines.
"""

import math

import torch
from torch import Tensor

from softspec.maths.mixture import mixture_logprobs
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


def lump_rest(listed_logprobs: Tensor) -> Tensor:
    """Close a truncated list of tokens with one bucket for all the others.

    Entropies and mutual information of the result are lower bounds on those of the full vocabulary and never
    fall as the list grows (data processing). Renormalising the list instead gives no bound at all.

    Args:
        listed_logprobs: (..., K, S), the *same* S tokens scored under every member.
    Returns:
        (..., K, S + 1), normalised; the last column is the lumped mass.
    """
    listed = listed_logprobs.exp().sum(-1, keepdim=True).clamp_max(1)
    return torch.cat([listed_logprobs, torch.log1p(-listed)], -1)


def quadratic_split(member_logprobs: Tensor, log_weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Total, aleatoric and epistemic uncertainty under the Brier score, (...) each, in [0, 1].

    1 - |P|^2 is the sum of the members' own and of the weighted variance of their probabilities.
    """
    members, weights = member_logprobs.exp(), log_weights.to(member_logprobs.dtype).exp()
    mean = mixture_logprobs(member_logprobs, log_weights).exp()
    aleatoric = (weights * (1 - members.square().sum(-1))).sum(-1)
    epistemic = (weights * (members - mean[..., None, :]).square().sum(-1)).sum(-1)
    return 1 - mean.square().sum(-1), aleatoric, epistemic
