"""How good forecasts and their uncertainties are on labelled data: calibration, selection, detection.

In: (N,) tensors of confidences, uncertainties and outcomes. Out: scalars. Knows nothing of members or models.
"""

import torch
from torch import Tensor


def brier_score(probabilities: Tensor, labels: Tensor) -> Tensor:
    """Mean squared distance to the one-hot label, in [0, 2], from (N, C) and (N,) class ids."""
    truth = torch.nn.functional.one_hot(labels, probabilities.shape[1])
    return (probabilities.double() - truth).square().sum(1).mean()


def expected_calibration_error(confidence: Tensor, correct: Tensor, num_bins: int = 15) -> Tensor:
    """Mean gap between confidence and accuracy over equal-width bins, weighted by their size; in [0, 1].

    Even a perfectly calibrated forecaster does not reach 0: with 15 bins and confidences spread evenly over
    [0, 1] it scores 0.12, 0.04 and 0.012 on average at N = 100, 1,000 and 10,000. Print that floor next to it.

    Args:
        confidence: (N,), probability of the answer given. correct: (N,), 0 or 1.
    Source: Guo et al. 2017 (arXiv:1706.04599).
    """
    bins = (confidence * num_bins).long().clamp(0, num_bins - 1)
    surplus = correct.double() - confidence.double()
    gaps = torch.zeros(num_bins, dtype=torch.float64).index_add_(0, bins, surplus)
    return gaps.abs().sum() / len(confidence)


def aurc(uncertainty: Tensor, errors: Tensor) -> Tensor:
    """Area under the risk-coverage curve: mean error rate of the i most certain answers over i = 1 ... N.

    Answers that tie count as in random order, so a constant uncertainty scores the plain error rate.

    Args:
        uncertainty: (N,), higher is less certain. errors: (N,), 0 or 1.
    """
    _, ties, sizes = uncertainty.unique(return_inverse=True, return_counts=True)
    tied_errors = torch.zeros(len(sizes), dtype=torch.float64).index_add_(0, ties, errors.double()) / sizes
    ranked = tied_errors.repeat_interleave(sizes)
    return (ranked.cumsum(0) / torch.arange(1, len(ranked) + 1)).mean()


def oracle_aurc(errors: Tensor) -> Tensor:
    """`aurc` with every wrong answer less certain than every right one, near r + (1 - r) log(1 - r)."""
    return aurc(errors, errors)


def excess_aurc(uncertainty: Tensor, errors: Tensor) -> Tensor:
    """`aurc` minus the oracle's; 0 is perfect."""
    return aurc(uncertainty, errors) - oracle_aurc(errors)


def prediction_rejection_ratio(uncertainty: Tensor, errors: Tensor) -> Tensor:
    """Where the ranking stands from chance (0) to the oracle (1); NaN if all are right or all wrong."""
    chance, best = errors.double().mean(), oracle_aurc(errors)
    return (chance - aurc(uncertainty, errors)) / (chance - best)


def auroc(positives: Tensor, negatives: Tensor) -> Tensor:
    """P(u_positive > u_negative) + P(equal) / 2, from scores (N,) and (M,)."""
    ranked = negatives.sort().values
    below = torch.searchsorted(ranked, positives, right=False)
    not_above = torch.searchsorted(ranked, positives, right=True)
    return (below + not_above).double().mean() / (2 * len(negatives))
