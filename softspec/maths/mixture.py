"""The mixture: K members read as one predictive, and the weights with which they enter.

In: members' log-probabilities and log-weights. Out: mixture log-probabilities and updated log-weights, all in
nats. Knows nothing of models or decoding.

Two mixtures exist. Training scores whole completions, P(y) = sum_k w_k p_k(y), and its token predictive
weighs members by how well they explained the *prefix* (`update_log_weights` after every token). Keeping the
weights fixed at every token is another model. These functions take `log_weights`, so the caller decides which
one is served.
"""

import math

import torch
from torch import Tensor

from softspec.errors import ShapeError

_CLEARLY_IN_RANGE = 1e-30
"""Above this the sum of float32 probabilities is as good as the sum in logs; what underflows adds less than 1e-8."""


def uniform_log_weights(num_members: int) -> Tensor:
    """Log-weights (K,), float64, with which every member counts the same."""
    return torch.full((num_members,), -math.log(num_members), dtype=torch.float64)


def mixture_logprobs(member_logprobs: Tensor, log_weights: Tensor) -> Tensor:
    """The mixture's log sum_k w_k p_k: the mean of probabilities, never of logits.

    Args:
        member_logprobs: (..., K, V), normalised over V, float32 or wider.
        log_weights: (..., K), normalised over K; one (K,) serves all leading dimensions.
    Returns:
        (..., V), nats, normalised, in the dtype of `member_logprobs`.
    Raises:
        ShapeError: K differs between the two arguments.
    """
    require_same_members(member_logprobs.shape[-2], log_weights)
    return torch.logsumexp(member_logprobs + log_weights.to(member_logprobs.dtype)[..., None], -2)


def distributions(logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probabilities, probabilities and log-normalisers of members' logits, for one exponential.

    As exact as torch's log_softmax: the largest probability is 1 / sum exp(logit - largest logit). One member alone is
    computed by it, to be the same to the last digit.

    Args:
        logits: (..., K, V), overwritten; -inf where a constraint forbids a token.
    Returns:
        (..., K, V) twice, and log sum exp (..., K): -inf for a row that has no token left, of which the others are NaN.
    """
    if logits.shape[-2] == 1:
        logprobs = logits.log_softmax(-1)
        return logprobs, logprobs.exp(), logits.logsumexp(-1)
    probs = logits.softmax(-1)
    peak, peak_logprob = logits.amax(-1, keepdim=True), probs.amax(-1, keepdim=True).log()
    logits -= peak
    logits += peak_logprob
    return logits, probs, torch.where(peak == -math.inf, peak, peak - peak_logprob).squeeze(-1)


def mix(member_logprobs: Tensor, member_probs: Tensor, log_weights: Tensor) -> tuple[Tensor, Tensor]:
    """The mixture's log-probabilities and probabilities, for members of which both are at hand.

    On a CPU exponentials are dear, so probabilities are added where none is too small for that. Finding that out on
    an accelerator would make the host wait.
    """
    require_same_members(member_logprobs.shape[-2], log_weights)
    if member_logprobs.shape[-2] == 1:
        return member_logprobs.squeeze(-2), member_probs.squeeze(-2)
    if member_probs.device.type == "cpu":
        weights = log_weights.to(member_probs.dtype).exp()
        probs = (weights[..., None, :] @ member_probs).squeeze(-2)
        logprobs = probs.log()
        # Group by group, so that the digits of one do not depend on its neighbours.
        too_small = ~(probs.amin(-1) > _CLEARLY_IN_RANGE)
        if too_small.any():
            weights = log_weights.expand(member_logprobs.shape[:-1])[too_small]
            logprobs[too_small] = mixture_logprobs(member_logprobs[too_small], weights)
            probs[too_small] = logprobs[too_small].exp()
        return logprobs, probs
    logprobs = mixture_logprobs(member_logprobs, log_weights)
    return logprobs, logprobs.exp()


def mixture_logits(mixture: Tensor, log_weights: Tensor, log_normalisers: Tensor) -> Tensor:
    """The mixture's log-probabilities on the scale of its members' logits, on which penalties are meant to act.

    A repetition penalty divides scores above zero and multiplies those below, so it depends on where zero is. Adding
    the members' mean log-normaliser changes no probability, and makes the mixture of one member that member's logits.

    Args:
        mixture: (..., V), log-probabilities. log_weights: (..., K). log_normalisers: (..., K), of the members' logits.
    """
    require_same_members(log_normalisers.shape[-1], log_weights)
    scale = (log_weights.to(log_normalisers.dtype).exp() * log_normalisers).sum(-1, keepdim=True)
    return mixture + scale


def update_log_weights(log_weights: Tensor, token_logprobs: Tensor) -> Tensor:
    """One step of Bayes' rule: how far each member is to be believed after one more token of the answer.

    Start from the prior weights at the first answer token; the prompt does not update them, as in training.

    Args:
        log_weights: (..., K), before the token.
        token_logprobs: (..., K), the token's log-probability under each member; at least one is finite.
    Returns:
        (..., K), normalised, nats, in the wider dtype of the two.
    Raises:
        ShapeError: K differs between the two arguments.
    """
    require_same_members(token_logprobs.shape[-1], log_weights)
    return torch.log_softmax(log_weights + token_logprobs, -1)


def prefix_log_weights(log_weights: Tensor, token_logprobs: Tensor) -> Tensor:
    """The weights *before* each token of a known answer, pi_{k,t} proportional to w_k p_k(y_<t).

    Args:
        log_weights: (K,), prior.
        token_logprobs: (K, T), of the answer's tokens.
    Returns:
        (K, T), columns normalised, float64; the first column is the prior.
    """
    require_same_members(token_logprobs.shape[0], log_weights)
    scores = token_logprobs.double()
    before = scores.cumsum(1).roll(1, 1)
    before[:, :1] = 0
    return torch.log_softmax(log_weights.to(scores)[:, None] + before, 0)


def sequence_loglik(log_weights: Tensor, loglik: Tensor) -> Tensor:
    """The mixture's log P(y) = log sum_k w_k p_k(y) of whole answers.

    Args:
        log_weights: (K,).
        loglik: (K, ...), nats.
    Returns:
        (...), nats, float64.
    """
    return torch.logsumexp(joint_loglik(log_weights, loglik), 0)


def joint_loglik(log_weights: Tensor, loglik: Tensor) -> Tensor:
    """The joint log w_k + log p_k(y) of member and answer, (K, ...), float64, from (K,) and (K, ...)."""
    require_same_members(loglik.shape[0], log_weights)
    scores = loglik.double()
    return scores + log_weights.to(scores).reshape(-1, *[1] * (loglik.ndim - 1))


def require_same_members(found: int, log_weights: Tensor) -> None:
    """Raise ShapeError unless `log_weights` (..., K) has K = `found`."""
    if log_weights.shape[-1] != found:
        raise ShapeError(
            f"found {found} members but {log_weights.shape[-1]} log_weights: expected one weight per member"
        )
