"""Uncertainty of the next token, split into what members share and where they differ.

In: members' log-probabilities and log-weights. Out: entropies and divergences in nats. Knows nothing of engines, HTTP
or thresholds; `answer.py` has the records that leave the worker.

Everywhere member_logprobs is (..., K, V), normalised over V, full vocabulary, float32 or wider; log_weights
is (..., K), normalised over K; results are (...), nats. K that differs raises ShapeError.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from softspec.maths.mixture import joint_loglik, mix, mixture_logprobs


def entropy(logprobs: Tensor, probs: Tensor | None = None) -> Tensor:
    """Entropy over the last dimension, nats; impossible outcomes (-inf) count 0. `probs`: p, if at hand."""
    finite = logprobs.clamp_min(torch.finfo(logprobs.dtype).min)
    return -finite.mul_(logprobs.exp() if probs is None else probs).sum(-1)


def total_entropy(member_logprobs: Tensor, log_weights: Tensor) -> Tensor:
    """Entropy of the mixture, in [0, log V]."""
    return entropy(mixture_logprobs(member_logprobs, log_weights))


def aleatoric_entropy(member_logprobs: Tensor, log_weights: Tensor) -> Tensor:
    """Expected entropy of a member, in [0, total_entropy]: the uncertainty on which members agree."""
    return _expected(entropy(member_logprobs), log_weights)


def mutual_information(member_logprobs: Tensor, log_weights: Tensor) -> Tensor:
    """Epistemic uncertainty, I(token; member) = total - aleatoric, in [0, H(weights)].

    The same weights stand in both terms; mixing prefix weights with uniform ones can go negative.
    Source: Houlsby et al. 2011 (arXiv:1112.5745), the BALD decomposition.
    """
    return predict(member_logprobs, log_weights).epistemic


def kl_divergence(logprobs: Tensor, other: Tensor) -> Tensor:
    """KL(p || q) over the last dimension, nats, >= 0; infinite where p has mass and q has none."""
    gap = torch.where(logprobs == -math.inf, 0.0, logprobs - other)
    return (logprobs.exp() * gap).sum(-1).clamp_min(0)


def posterior_information(log_weights: Tensor, loglik: Tensor) -> Tensor:
    """KL(posterior over members given the answer || prior weights): what an answer tells about its member.

    Averaged over answers drawn from the mixture it is an unbiased estimate of I(member; answer).

    Args:
        log_weights: (K,).
        loglik: (K, ...), whole answers, nats.
    Returns:
        (...), float64, in [0, log(1/min w)].
    """
    posterior = torch.log_softmax(joint_loglik(log_weights, loglik), 0).movedim(0, -1)
    return kl_divergence(posterior, log_weights.to(posterior))


@dataclass(frozen=True)
class Predictive:
    """One decode step of the mixture: its log-probabilities (..., V) and its uncertainties (...), nats.

    `member_choices` (..., K), int64: each member's likeliest token; None if it was not looked for.
    """

    logprobs: Tensor
    total_entropy: Tensor
    aleatoric_entropy: Tensor
    epistemic: Tensor
    disagreement: Tensor
    member_choices: Tensor | None = None


def likeliest(logprobs: Tensor) -> Tensor:
    """The index of the largest number over the last dimension, int64; the lowest where several are.

    On a CPU numpy looks through a vocabulary ten times as fast as torch.
    """
    if logprobs.device.type == "cpu":
        return torch.from_numpy(logprobs.detach().numpy().argmax(-1, keepdims=True)).squeeze(-1)
    return logprobs.argmax(-1)


def predict(member_logprobs: Tensor, log_weights: Tensor, member_probs: Tensor | None = None) -> Predictive:
    """Everything a decode step reports, with the shared work done once.

    Args:
        member_logprobs: (..., K, V).
        log_weights: (..., K), the weights that mix this token: updated by the prefix, or the prior where they
            are fixed.
        member_probs: (..., K, V), their exponential, if at hand.
    """
    if member_probs is None:
        member_probs = member_logprobs.exp()
    mixture, mixture_probs = mix(member_logprobs, member_probs, log_weights)
    # One member after the other: the intermediate results of all would be as large as the logits.
    each = zip(member_logprobs.unbind(-2), member_probs.unbind(-2), strict=True)
    member_entropy = torch.stack([entropy(logprobs, probs) for logprobs, probs in each], -1)
    total, aleatoric = entropy(mixture, mixture_probs), _expected(member_entropy, log_weights)
    choices = likeliest(member_logprobs)
    return Predictive(
        logprobs=mixture,
        total_entropy=total,
        aleatoric_entropy=aleatoric,
        epistemic=(total - aleatoric).clamp_min(0),
        disagreement=disagreement(member_logprobs, choices, mixture, log_weights),
        member_choices=choices,
    )


def unmeasured(mixture: Tensor) -> Predictive:
    """A decode step of which only the mixture's log-probabilities (..., V) were computed; the rest is NaN."""
    unknown = mixture.new_full(mixture.shape[:-1], math.nan)
    return Predictive(mixture, unknown, unknown, unknown, unknown)


def _expected(values: Tensor, log_weights: Tensor) -> Tensor:
    """The mean over members (..., K), by their weights."""
    return (log_weights.to(values.dtype).exp() * values).sum(-1)


def disagreement(member_logprobs: Tensor, choices: Tensor, mixture: Tensor, log_weights: Tensor) -> Tensor:
    """Weighted share of members to whom the mixture's likeliest token is not among the likeliest."""
    chosen = torch.stack([likeliest(mixture)[..., None].expand_as(choices), choices], -1)
    mixtures, own = member_logprobs.gather(-1, chosen).unbind(-1)
    dissents = mixtures < own
    return _expected(dissents.to(member_logprobs.dtype), log_weights)
