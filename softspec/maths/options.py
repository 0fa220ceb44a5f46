"""A choice between known options: what the mixture thinks of each, and where its members differ.

In: log-probabilities of whole options under each member, and log-weights. Out: probabilities, and entropies in nats.
Knows nothing of tokens, engines, HTTP or thresholds.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.special import entr

from softspec.errors import ConfigError
from softspec.maths.mixture import joint_loglik, sequence_loglik


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


def weigh_options(
    member_log_probs: Tensor,
    log_weights: Tensor,
    *,
    mixture_log_probs: Tensor | None = None,
    num_tokens: Tensor | None = None,
) -> OptionsUncertainty:
    """Read a choice off the members' log-probabilities of its options.

    Given that the answer is one of the options, member k is behind it with weight proportional to w_k * sum_o p_k(o),
    and then says option o with q_k(o) = p_k(o) / sum_o p_k(o). The mixture of these q_k by these weights is
    `probabilities`; `epistemic` is the mutual information of member and option in it, and at most log K.

    Args:
        member_log_probs: (K, O), nats; -inf is an option that a member cannot say.
        log_weights: (K,), prior.
        mixture_log_probs: (O,), where the mixture is not sum_k w_k p_k(o): weights that are fixed at every token make
            it a product over tokens. `aleatoric_entropy` is then at most the total. None: the sum.
        num_tokens: (O,), to compare the mean log-probability of a token in place of the whole option's; `label_mass`
            stays that of the whole options.
    Raises:
        ConfigError: no option is possible under any member.
    """
    scores = member_log_probs.double()
    label_mass = _mixture(scores, log_weights, mixture_log_probs).logsumexp(0)
    if label_mass == -math.inf:
        raise ConfigError("every option has probability 0 under every member: expected one that can be said")
    if num_tokens is not None:
        scores = scores / num_tokens
        mixture_log_probs = None if mixture_log_probs is None else mixture_log_probs.double() / num_tokens
    probabilities = _mixture(scores, log_weights, mixture_log_probs).softmax(0)
    weights = joint_loglik(log_weights, scores).logsumexp(1).softmax(0)
    is_possible = scores.amax(1, keepdim=True) > -math.inf
    members = torch.where(is_possible, scores.softmax(1), 0.0)
    total = float(entr(probabilities).sum())
    aleatoric = min(float(weights @ entr(members).sum(1)), total)
    dissents = members[:, probabilities.argmax()] < members.amax(1)
    return OptionsUncertainty(
        probabilities=tuple(probabilities.tolist()),
        label_mass=min(float(label_mass.exp()), 1.0),
        total_entropy=total,
        aleatoric_entropy=aleatoric,
        epistemic=total - aleatoric,
        disagreement=min(float(weights @ dissents.double()), 1.0),
        member_probabilities=tuple(map(tuple, members.tolist())),
    )


def _mixture(scores: Tensor, log_weights: Tensor, known: Tensor | None) -> Tensor:
    """The mixture's log-probability of each option (O,), float64."""
    return sequence_loglik(log_weights, scores) if known is None else known.double()
