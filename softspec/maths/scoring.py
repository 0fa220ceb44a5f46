"""How good forecasts and their uncertainties are on labelled data: calibration, selection, detection, agreement.

In: (N,) tensors of confidences, uncertainties and outcomes; outcomes may be shares in [0, 1], where people disagree.
Out: scalars; or, with `weights` (..., N), how often each row counts, tensors (...): so resampled data cost one call.
Knows nothing of members or models.
"""

import torch
from torch import Tensor


def expected_calibration_error(
    confidence: Tensor, correct: Tensor, num_bins: int = 15, weights: Tensor | None = None
) -> Tensor:
    """Mean gap between confidence and accuracy over equal-width bins, weighted by their size; in [0, 1].

    Even a perfectly calibrated forecaster does not reach 0: with 15 bins and confidences spread evenly over
    [0, 1] it scores 0.12, 0.04 and 0.012 on average at N = 100, 1,000 and 10,000. Print that floor next to it.

    Args:
        confidence: (N,), probability of the answer given. correct: (N,), or (..., N), in [0, 1].
    Source: Guo et al. 2017 (arXiv:1706.04599).
    """
    bins = (confidence * num_bins).long().clamp(0, num_bins - 1)
    surplus = correct.double() - confidence.double()
    counts = _counts(confidence, weights)
    gaps = _sums(counts * surplus, bins, num_bins)
    return gaps.abs().sum(-1) / counts.sum(-1)


def aurc(uncertainty: Tensor, errors: Tensor, weights: Tensor | None = None) -> Tensor:
    """Area under the risk-coverage curve: mean error rate of the i most certain answers over i = 1 ... N.

    Answers that tie count as in random order, so a constant uncertainty scores the plain error rate.

    Args:
        uncertainty: (N,), higher is less certain. errors: (N,), in [0, 1].
    """
    levels, ties = uncertainty.unique(return_inverse=True)
    counts = _counts(uncertainty, weights)
    sizes, wrong = _sums(counts, ties, len(levels)), _sums(counts * errors.double(), ties, len(levels))
    seen, wrong_so_far = sizes.cumsum(-1), wrong.cumsum(-1)
    before, wrong_before = seen - sizes, wrong_so_far - wrong
    rates = wrong / torch.where(sizes > 0, sizes, 1.0)
    # Answers that tie are wrong at one rate: the sum of (wrong_before + rate i) / (before + i) over i = 1 ... size.
    harmonic = torch.digamma(seen + 1) - torch.digamma(before + 1)
    return (wrong + (wrong_before - rates * before) * harmonic).sum(-1) / counts.sum(-1)


def oracle_aurc(errors: Tensor, weights: Tensor | None = None) -> Tensor:
    """`aurc` with every wrong answer less certain than every right one, near r + (1 - r) log(1 - r)."""
    return aurc(errors, errors, weights)


def excess_aurc(uncertainty: Tensor, errors: Tensor, weights: Tensor | None = None) -> Tensor:
    """`aurc` minus the oracle's; 0 is perfect."""
    return aurc(uncertainty, errors, weights) - oracle_aurc(errors, weights)


def prediction_rejection_ratio(uncertainty: Tensor, errors: Tensor, weights: Tensor | None = None) -> Tensor:
    """Where the ranking stands from chance (0) to the oracle (1); NaN if all are right or all wrong."""
    counts = _counts(errors, weights)
    chance, best = (counts * errors.double()).sum(-1) / counts.sum(-1), oracle_aurc(errors, weights)
    gained, possible = chance - aurc(uncertainty, errors, weights), chance - best
    return torch.where(possible > 1e-12, gained / possible, torch.nan)


def auroc(
    positives: Tensor,
    negatives: Tensor,
    positive_weights: Tensor | None = None,
    negative_weights: Tensor | None = None,
) -> Tensor:
    """P(u_positive > u_negative) + P(equal) / 2, from scores (N,) and (M,); NaN where one side is empty."""
    ranked, order = negatives.sort()
    counts = _counts(negatives, negative_weights)[..., order]
    passed = torch.cat([counts.new_zeros(*counts.shape[:-1], 1), counts.cumsum(-1)], -1)
    below = passed[..., torch.searchsorted(ranked, positives, right=False)]
    not_above = passed[..., torch.searchsorted(ranked, positives, right=True)]
    own = _counts(positives, positive_weights)
    return (own * (below + not_above)).sum(-1) / (2 * own.sum(-1) * passed[..., -1])


def spearman(first: Tensor, second: Tensor, weights: Tensor | None = None) -> Tensor:
    """Correlation of mean ranks, in [-1, 1]; NaN where one of the two is constant.

    Source: Spearman 1904; ties have the mean of their ranks.
    """
    counts = _counts(first, weights)
    total = counts.sum(-1, keepdim=True)
    ranks = [_mean_ranks(values, counts) for values in (first, second)]
    centred = [rank - (counts * rank).sum(-1, keepdim=True) / total for rank in ranks]
    covariance = (counts * centred[0] * centred[1]).sum(-1)
    spread = (counts * centred[0].square()).sum(-1) * (counts * centred[1].square()).sum(-1)
    return torch.where(spread > 1e-9 * total[..., 0], covariance / spread.sqrt(), torch.nan)


def _counts(values: Tensor, weights: Tensor | None) -> Tensor:
    return torch.ones(values.shape[-1], dtype=torch.float64) if weights is None else weights.double()


def _sums(values: Tensor, groups: Tensor, num_groups: int) -> Tensor:
    """Sums of (..., N) over the members of each group, (..., G)."""
    sums = torch.zeros(*values.shape[:-1], num_groups, dtype=torch.float64)
    return sums.index_add_(-1, groups, values)


def _mean_ranks(values: Tensor, counts: Tensor) -> Tensor:
    """Mean rank of each row, (..., N), when every row is there `counts` (..., N) times."""
    levels, ties = values.unique(return_inverse=True)
    sizes = _sums(counts, ties, len(levels))
    return (sizes.cumsum(-1) - sizes / 2)[..., ties]
