"""A choice between known options: what the mixture thinks of each, and where its members differ.

In: log-probabilities of whole options under each member, and log-weights, of one choice or of many. Out: probabilities,
and entropies in nats.
Knows nothing of tokens, engines, HTTP or thresholds.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.special import entr

from softspec.errors import ConfigError
from softspec.maths.mixture import require_same_members, sequence_loglik


@dataclass(frozen=True)
class OptionsUncertainty:
    """A mixture's distribution over O options that exclude one another, and its K members'.

    Entropies and `epistemic` are in nats, total = aleatoric + epistemic; the rest are shares. `label_mass` is what the
    options had together before `probabilities` were made to sum to 1. A member to whom no option is possible has zeros.
    """

    probabilities: tuple[float, ...]
    label_mass: float
    total_entropy: float
    aleatoric_entropy: float
    epistemic: float
    disagreement: float
    member_probabilities: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class OptionDistributions:
    """As `OptionsUncertainty`, for many choices at once: tensors (..., O), (...), (..., K, O), float64.

    `member_weights` (..., K) are the weights with which members mix, given that the answer is one of the options.
    """

    probabilities: Tensor
    label_mass: Tensor
    total_entropy: Tensor
    aleatoric_entropy: Tensor
    disagreement: Tensor
    member_probabilities: Tensor
    member_weights: Tensor

    @property
    def epistemic(self) -> Tensor:
        """Mutual information of member and option, (...), nats."""
        return self.total_entropy - self.aleatoric_entropy


def weigh_options(
    member_log_probs: Tensor,
    log_weights: Tensor,
    *,
    mixture_log_probs: Tensor | None = None,
    num_tokens: Tensor | None = None,
) -> OptionsUncertainty:
    """Read one choice off the members' log-probabilities of its options, as `option_distributions` does.

    Raises:
        ConfigError: no option is possible under any member.
    """
    found = option_distributions(
        member_log_probs, log_weights, mixture_log_probs=mixture_log_probs, num_tokens=num_tokens
    )
    if not found.probabilities.isfinite().all():
        raise ConfigError("every option has probability 0 under every member: expected one that can be said")
    return OptionsUncertainty(
        probabilities=tuple(found.probabilities.tolist()),
        label_mass=float(found.label_mass),
        total_entropy=float(found.total_entropy),
        aleatoric_entropy=float(found.aleatoric_entropy),
        epistemic=float(found.epistemic),
        disagreement=float(found.disagreement),
        member_probabilities=tuple(map(tuple, found.member_probabilities.tolist())),
    )


def option_distributions(
    member_log_probs: Tensor,
    log_weights: Tensor,
    *,
    mixture_log_probs: Tensor | None = None,
    num_tokens: Tensor | None = None,
) -> OptionDistributions:
    """Read choices off the members' log-probabilities of their options.

    Given that the answer is one of the options, member k is behind it with weight proportional to w_k * sum_o p_k(o),
    and then says option o with q_k(o) = p_k(o) / sum_o p_k(o). The mixture of these q_k by these weights is
    `probabilities`; `epistemic` is the mutual information of member and option in it, and at most log K.

    Args:
        member_log_probs: (..., K, O), nats; -inf is an option that a member cannot say. Where no member can say any,
            `probabilities` are NaN.
        log_weights: (K,), prior.
        mixture_log_probs: (..., O), where the mixture is not sum_k w_k p_k(o): weights that are fixed at every token
            make it a product over tokens. `aleatoric_entropy` is then at most the total. None: the sum.
        num_tokens: (..., O), to compare the mean log-probability of a token in place of the whole option's;
            `label_mass` stays that of the whole options.
    """
    require_same_members(member_log_probs.shape[-2], log_weights)
    scores = member_log_probs.double()
    mixture = _mixture(scores, log_weights) if mixture_log_probs is None else mixture_log_probs.double()
    label_mass = mixture.logsumexp(-1).exp().clamp_max(1)
    if num_tokens is not None:
        scores = scores / num_tokens[..., None, :]
        mixture = _mixture(scores, log_weights) if mixture_log_probs is None else mixture / num_tokens
    probabilities = mixture.softmax(-1)
    weights = (log_weights.to(scores) + scores.logsumexp(-1)).softmax(-1)
    is_possible = scores.amax(-1, keepdim=True) > -math.inf
    members = torch.where(is_possible, scores.softmax(-1), 0.0)
    total = entr(probabilities).sum(-1)
    aleatoric = torch.minimum((weights * entr(members).sum(-1)).sum(-1), total)
    chosen = probabilities.argmax(-1)[..., None, None].expand(*members.shape[:-1], 1)
    dissents = members.gather(-1, chosen)[..., 0] < members.amax(-1)
    return OptionDistributions(
        probabilities=probabilities,
        label_mass=label_mass,
        total_entropy=total,
        aleatoric_entropy=aleatoric,
        disagreement=(weights * dissents).sum(-1).clamp_max(1),
        member_probabilities=members,
        member_weights=weights,
    )


def _mixture(scores: Tensor, log_weights: Tensor) -> Tensor:
    """The mixture's log-probability of each option (..., O), float64, from (..., K, O)."""
    return sequence_loglik(log_weights, scores.movedim(-2, 0))
