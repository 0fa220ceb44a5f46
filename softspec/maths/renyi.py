"""The alpha-Renyi objective, its responsibilities, and how to read them.

In: log-likelihoods of whole examples under each member (nats). Out: losses, responsibilities, routing
diagnostics. Knows nothing of models, tokens or optimisers.

Objective: arXiv:2605.27747 (per-example loss and responsibilities as reported from it); the identities quoted
below are derived in this project and are tests. Shape letters: K members, B examples (any further shape works
too), N examples.
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from softspec.errors import ConfigError, ShapeError

SMALLEST_ALPHA = 1e-6
HALVINGS = 50
"""Of the interval in which a bounded order lies: float64 knows no finer."""


def renyi_loss(
    loglik: Tensor, log_weights: Tensor, renyi_alpha: float | Tensor, floor: float = 0.0
) -> Tensor:
    """The alpha-Renyi loss of each example: -(1/alpha) log sum_k w_k p_k^alpha, from the members' power mean.

    At alpha = 1 it is the mixture's NLL, towards 0 the mean of the members' NLLs (an exact branch, also taken
    below `SMALLEST_ALPHA`, where the quotient would cancel); it never rises with alpha, so never choose alpha
    by it. The reduction runs in float64: log-likelihoods of some hundred nats cost float32 its digits.

    Args:
        loglik: (K, B), the *sum* over completion tokens, nats.
        log_weights: (K,), normalised.
        renyi_alpha: one order for all, or (B,) positive ones.
        floor: share in [0, 1] of the loss at alpha = 0 in it, which keeps members from starving.
    Returns:
        (B,), nats, float64. Its gradient in `loglik` is minus the responsibilities with the same floor.
    Raises:
        ShapeError: the two do not have the same K.
        ConfigError: renyi_alpha is negative or not finite.
    """
    scores, weights = _aligned(loglik, log_weights)
    alpha = effective_alpha(renyi_alpha)
    if isinstance(alpha, float) and alpha == 0:
        return -(weights.exp() * scores).sum(0)
    loss = -torch.logsumexp(weights + alpha * scores, 0) / alpha
    return loss if floor == 0 else (1 - floor) * loss - floor * (weights.exp() * scores).sum(0)


def responsibilities(
    loglik: Tensor, log_weights: Tensor, renyi_alpha: float | Tensor, floor: float = 0.0
) -> Tensor:
    """Each member's share of each example: r_k proportional to w_k p_k^alpha; the weights at alpha = 0.

    With a floor: (1 - floor) r + floor w.

    They need the label, so they describe training and evaluation, never serving. Detach them before use in a
    surrogate.

    Returns:
        (K, B), float64, columns sum to 1. Arguments and errors as for `renyi_loss`.
    """
    scores, weights = _aligned(loglik, log_weights)
    alpha = effective_alpha(renyi_alpha)
    if isinstance(alpha, float) and alpha == 0:
        return weights.exp().expand_as(scores)
    shares = torch.softmax(weights + alpha * scores, 0)
    return shares if floor == 0 else (1 - floor) * shares + floor * weights.exp()


def bounded_order(
    loglik: Tensor, log_weights: Tensor, renyi_alpha: float | Tensor, reach_nats: float | Tensor
) -> Tensor:
    """The largest order up to renyi_alpha at which responsibilities are within reach of the weights, for each example.

    Within reach means KL(r || w) <= reach_nats. With these orders r minimises sum_k r_k nll_k + KL(r || w) / alpha, as
    responsibilities do, among all shares within reach; so minus r is the gradient of that smallest value.

    Args:
        loglik: (K, B), nats. renyi_alpha: one order for all, or (B,); positive.
        reach_nats: one for all, or (B,): from 0, where shares are the weights, to the largest -log w_k (log K when they
        are uniform), where nothing is bounded.
    Returns:
        (B,), float64, at least `SMALLEST_ALPHA`.
    Raises:
        As `renyi_loss`.
    """
    scores, weights = _aligned(loglik, log_weights)
    scores = scores - scores.amax(0)
    largest = torch.as_tensor(effective_alpha(renyi_alpha), dtype=torch.float64, device=scores.device)
    largest = largest.clamp_min(SMALLEST_ALPHA).expand(scores.shape[1:])

    def is_within_reach(order: Tensor) -> Tensor:
        log_shares = torch.log_softmax(weights + order * scores, 0)
        return (log_shares.exp() * (log_shares - weights)).sum(0) <= reach_nats

    fits = is_within_reach(largest)
    if fits.all():
        return largest
    low, high = torch.zeros_like(largest), largest
    for _ in range(HALVINGS):  # KL(r || w) rises with the order: its slope is the order times a variance
        middle = (low + high) / 2
        inside = is_within_reach(middle)
        low, high = torch.where(inside, middle, low), torch.where(inside, high, middle)
    return torch.where(fits, largest, low).clamp_min(SMALLEST_ALPHA)


def surrogate_loss(loglik: Tensor, responsibilities: Tensor) -> Tensor:
    """Responsibility-weighted NLL of each example: it has the *gradient* of `renyi_loss`, not its value.

    renyi_loss = surrogate + KL(r || w) / alpha, so log the loss and differentiate either; responsibilities are
    constants in this one.

    Args:
        loglik: (K, B), or a choice of its entries, (R,), nats.
        responsibilities: those of the same entries, times whatever the example counts.
    Returns:
        (B,), or of chosen entries their sum; nats, float64.
    """
    return -(responsibilities.detach() * loglik.double()).sum(0)


def dpo_loglik(margins: Tensor, beta: float, label_smoothing: float = 0.0) -> Tensor:
    """Log-likelihood of a preference under each member, to be used as `loglik` in the functions above.

    Args:
        margins: (K, B), policy-to-reference log-ratio of the chosen minus that of the rejected completion,
        nats.
        beta: inverse temperature of the preference model.
        label_smoothing: probability that a label is flipped, in [0, 0.5). This is the likelihood of a label that may
        be wrong, log((1 - e) s(m) + e s(-m)) with s the sigmoid; what other libraries call label smoothing is another
        formula, the mean (1 - e) log s(m) + e log s(-m).
    Returns:
        (K, B), nats, <= 0; log 1/2 at margin 0.
    Source: Rafailov et al. 2023 (arXiv:2305.18290), without smoothing; its use in the alpha-Renyi loss and the
    smoothing are this project's.
    """
    kept = logsigmoid(beta * margins)
    if label_smoothing == 0:
        return kept
    flipped = logsigmoid(-beta * margins)
    return torch.logaddexp(math.log1p(-label_smoothing) + kept, math.log(label_smoothing) + flipped)


def effective_alpha(renyi_alpha: float | Tensor) -> float | Tensor:
    """The order that is really used: values in (0, 1e-6) count as 0; in a tensor, as 1e-6.

    Raises:
        ConfigError: negative or not finite.
    """
    if isinstance(renyi_alpha, Tensor):
        if not (renyi_alpha.isfinite() & (renyi_alpha > 0)).all():
            raise ConfigError(f"renyi_alpha has {renyi_alpha.tolist()}: expected finite numbers > 0")
        return renyi_alpha.double().clamp_min(SMALLEST_ALPHA)
    if not 0 <= renyi_alpha < math.inf:
        raise ConfigError(f"renyi_alpha is {renyi_alpha}: expected a finite number >= 0, usually in [0, 1]")
    return float(renyi_alpha) if renyi_alpha >= SMALLEST_ALPHA else 0.0


def weighted_mean(values: Tensor, weights: Tensor | None = None) -> Tensor:
    """The mean over N examples, (...), float64: each counts as its weight says, as it does in the loss.

    Args:
        values: (..., N).
        weights: (N,), not all zero; without any, all count alike.
    """
    if weights is None:
        return values.double().mean(-1)
    counts = weights.to(values.device).double()
    return (counts * values.double()).sum(-1) / counts.sum()


def load(responsibilities: Tensor, weights: Tensor | None = None) -> Tensor:
    """Mean share of each member over the N examples of (K, N); (K,), sums to 1. `weights` as for `weighted_mean`."""
    return weighted_mean(responsibilities, weights)


def routing_perplexity(responsibilities: Tensor, weights: Tensor | None = None) -> Tensor:
    """How many members share an example, exp mean H(r), scalar: K is no routing, 1 is hard routing."""
    return weighted_mean(_entropy(responsibilities), weights).exp()


def specialisation(responsibilities: Tensor, weights: Tensor | None = None) -> Tensor:
    """I(member; example) = H(load) - mean H(r), scalar, nats, in [0, log K]."""
    shared = weighted_mean(_entropy(responsibilities), weights)
    return (_entropy(load(responsibilities, weights)) - shared).clamp_min(0)


def soft_source_mi(responsibilities: Tensor, source_ids: Tensor, weights: Tensor | None = None) -> Tensor:
    """I(member; source): do members follow the known sources? Scalar, nats, at most `specialisation`.

    Unlike scores of the argmax it stays 0 where responsibilities are uniform up to rounding.

    Args:
        responsibilities: (K, N).
        source_ids: (N,), integers. weights: as for `weighted_mean`.
    """
    joint = _source_joint(responsibilities, source_ids, weights)
    independent = joint.sum(1, keepdim=True) * joint.sum(0, keepdim=True)
    return (torch.special.xlogy(joint, joint) - torch.special.xlogy(joint, independent)).sum().clamp_min(0)


def purity(responsibilities: Tensor, source_ids: Tensor) -> Tensor:
    """Share of examples whose source is the commonest one of their leading member, scalar in (0, 1].

    Meaningless when `routing_perplexity` is above 0.95 K: rounding then decides who leads.
    """
    leading = torch.nn.functional.one_hot(responsibilities.argmax(0), responsibilities.shape[0]).T
    return _source_joint(leading, source_ids, None).amax(0).sum()


def _aligned(loglik: Tensor, log_weights: Tensor) -> tuple[Tensor, Tensor]:
    if log_weights.ndim != 1 or loglik.ndim == 0 or loglik.shape[0] != log_weights.shape[0]:
        raise ShapeError(
            f"loglik has shape {tuple(loglik.shape)} and log_weights {tuple(log_weights.shape)}: "
            "expected (K, B) and (K,)"
        )
    scores = loglik.double()
    return scores, log_weights.to(scores).reshape(-1, *[1] * (loglik.ndim - 1))


def _entropy(probabilities: Tensor) -> Tensor:
    return torch.special.entr(probabilities.double()).sum(0)


def _source_joint(responsibilities: Tensor, source_ids: Tensor, weights: Tensor | None) -> Tensor:
    """P(source, member), (S, K)."""
    if responsibilities.shape[1:] != source_ids.shape:
        raise ShapeError(
            f"responsibilities have shape {tuple(responsibilities.shape)} "
            f"and source_ids {tuple(source_ids.shape)}: "
            "expected (K, N) and (N,)"
        )
    shares = responsibilities.double()
    counts = shares.new_ones(shares.shape[1]) if weights is None else weights.to(shares)
    ids, rows = source_ids.unique(return_inverse=True)
    joint = shares.new_zeros(len(ids), shares.shape[0])
    return joint.index_add_(0, rows, (counts * shares).T) / counts.sum()
