"""Held-out preferences: how clearly members prefer what was chosen.

In: `Members` and `Preference`s. Out: margins (K, N) in nats, and their summary for `ensemble.json`. Changes nothing.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from softspec.maths.mixture import sequence_loglik
from softspec.maths.renyi import (
    dpo_loglik,
    load,
    renyi_loss,
    responsibilities,
    routing_perplexity,
    weighted_mean,
)
from softspec.train.config import TrainConfig
from softspec.train.data.units import Preference, in_batches
from softspec.train.loop.facts import HeldOutPreferences
from softspec.train.members.members import Members
from softspec.train.objective.preferences import Preferences, accuracies, mean_margins


@torch.no_grad()
def score_margins(members: Members, preferences: Sequence[Preference], config: TrainConfig) -> Tensor:
    """Every member's margin over the base on every preference, (K, N), nats, float64."""
    objective = Preferences(config)
    found = [torch.zeros(members.num_members, 0, dtype=torch.float64, device=members.model.device)]
    parts = list(in_batches(preferences, config.micro_batch_size))
    for part, counts in members.rounds(parts, [objective.spare]):
        margins = objective.batch(members, part).table().margins
        if counts:
            found.append(margins)
    return torch.cat(found, 1)


def summarise_margins(
    margins: Tensor, weights: Tensor, log_weights: Tensor, config: TrainConfig
) -> HeldOutPreferences:
    """The facts that `ensemble.json` keeps of held-out preferences, from their margins (K, N) and weights (N,)."""
    loglik = dpo_loglik(margins, config.beta)
    mixture = sequence_loglik(log_weights, loglik)
    shares = responsibilities(loglik, log_weights, 1.0)
    return HeldOutPreferences(
        preferences=margins.shape[1],
        mixture_nll=-weighted_mean(mixture, weights).item(),
        mixture_accuracy=weighted_mean(mixture.exp() > 0.5, weights).item(),
        member_nll=-weighted_mean(loglik, weights).mean().item(),
        renyi_loss=weighted_mean(renyi_loss(loglik, log_weights, config.renyi_alpha), weights).item(),
        margins=mean_margins(margins, weights),
        accuracies=accuracies(margins, weights),
        load=load(shares, weights).tolist(),
        routing_perplexity=routing_perplexity(shares, weights).item(),
    )
