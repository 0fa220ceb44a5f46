"""Preferences as likelihoods: what the alpha-Renyi objective routes in DPO.

In: `Members` and `Preference`s. Out: margins (K, B) in nats, differentiable in the adapters, and their summary. The
reference is the base with all adapters off. Knows nothing of the optimizer.

Source: Rafailov et al. 2023 (arXiv:2305.18290); its use in the alpha-Renyi loss is this project's.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from softspec.artefact.activation import Activation
from softspec.maths.mixture import sequence_loglik
from softspec.maths.renyi import dpo_loglik, load, renyi_loss, responsibilities, routing_perplexity
from softspec.train.config import TrainConfig
from softspec.train.data.preferences import Preference
from softspec.train.data.rows import in_batches
from softspec.train.members.likelihood import Batch, base_loglik, collate, row_loglik
from softspec.train.members.members import Members
from softspec.train.members.pairs import Rows


def margins(members: Members, pairs: Sequence[Preference], batch: Batch, rows: Rows) -> Tensor:
    """How much more than the reference members prefer the chosen completions; (R,), nats, float64.

    Args:
        batch: from `collate_pairs`.
        rows: which member on which pair.
    """
    size, device = len(pairs), batch.tail_ids.device
    if rows.is_every_pair:
        both = Rows.all_pairs(members.num_members, batch.size, device)
        table = row_loglik(members, batch, both).view(members.num_members, 2, size)
        chosen, rejected = table[:, 0].flatten(), table[:, 1].flatten()
    else:
        both = Rows(torch.cat([rows.examples, rows.examples + size]), rows.members.repeat(2), batch.size)
        chosen, rejected = row_loglik(members, batch, both).chunk(2)
    reference = torch.tensor([pair.reference_margin for pair in pairs], dtype=torch.float64, device=device)
    return chosen - rejected - reference[rows.examples]


def all_margins(members: Members, pairs: Sequence[Preference], activation: Activation) -> Tensor:
    """Those of every member, (K, B)."""
    batch = collate_pairs(members, pairs, activation)
    rows = Rows.all_pairs(members.num_members, len(pairs), batch.tail_ids.device)
    return margins(members, pairs, batch, rows).view(members.num_members, -1)


def reference_margins(
    members: Members,
    pairs: Sequence[Preference],
    indices: Sequence[int],
    activation: Activation,
    batch_size: int,
) -> list[float]:
    """What the base makes of the pairs with these indices, nats: one pass over the data, for the whole run."""
    gaps: list[float] = []
    for part in in_batches(indices, batch_size):
        batch = collate_pairs(members, [pairs[index] for index in part], activation)
        chosen, rejected = base_loglik(members, batch)[0].chunk(2)
        gaps += (chosen - rejected).tolist()
    return gaps


@torch.no_grad()
def score_margins(members: Members, pairs: Sequence[Preference], config: TrainConfig) -> Tensor:
    """Those of every member on held-out pairs, (K, B)."""
    parts = in_batches(pairs, config.micro_batch_size)
    nothing = torch.zeros(members.num_members, 0, dtype=torch.float64, device=members.model.device)
    return torch.cat([nothing, *(all_margins(members, part, config.activation) for part in parts)], 1)


def summarise_margins(gaps: Tensor, log_weights: Tensor, config: TrainConfig) -> dict[str, Any]:
    """The facts that `ensemble.json` keeps as `held_out`, from (K, N): means over pairs, nats; accuracies are shares.

    A mixture's probability of a preference is the weighted mean of its members'. Labels are taken as they are, without
    smoothing; responsibilities are those at alpha = 1.
    """
    loglik = dpo_loglik(gaps, config.beta)
    mixture = sequence_loglik(log_weights, loglik)
    shares = responsibilities(loglik, log_weights, 1.0)
    return {
        "preferences": gaps.shape[1],
        "mixture_nll": -mixture.mean().item(),
        "mixture_accuracy": (mixture.exp() > 0.5).double().mean().item(),
        "member_nll": -loglik.mean().item(),
        "renyi_loss": renyi_loss(loglik, log_weights, config.renyi_alpha).mean().item(),
        **margin_facts(gaps),
        "load": load(shares).tolist(),
        "routing_perplexity": routing_perplexity(shares).item(),
    }


def margin_facts(gaps: Tensor) -> dict[str, Any]:
    """Per member: the mean margin (nats), and the share of pairs whose margin has the right sign."""
    return {"margins": gaps.mean(1).tolist(), "accuracies": (gaps > 0).double().mean(1).tolist()}


def collate_pairs(members: Members, pairs: Sequence[Preference], activation: Activation) -> Batch:
    """All B chosen completions, then all rejected ones: a batch of 2 B."""
    examples = [pair.chosen for pair in pairs] + [pair.rejected for pair in pairs]
    return collate(examples, activation, members.model.device)
