"""Calibration and selection scores against closed forms and naive loops."""

import math

import pytest
import torch
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score

from softspec.maths.scoring import (
    aurc,
    auroc,
    excess_aurc,
    expected_calibration_error,
    oracle_aurc,
    prediction_rejection_ratio,
    spearman,
)

GENERATOR_SEED = 0


def random_errors(count: int, rate: float) -> torch.Tensor:
    return (torch.rand(count, generator=torch.Generator().manual_seed(GENERATOR_SEED)) < rate).long()


def test_calibration_error_of_one_bin_is_its_gap() -> None:
    confidence, correct = torch.tensor([0.7, 0.7, 0.7, 0.7]), torch.tensor([1, 1, 0, 0])

    assert expected_calibration_error(confidence, correct).item() == pytest.approx(0.2, abs=1e-7)


def test_full_confidence_has_a_bin() -> None:
    assert expected_calibration_error(torch.ones(4), torch.ones(4)).item() == 0


@pytest.mark.parametrize("count", [100, 1000, 10000])
def test_even_perfect_calibration_scores_above_zero(count: int) -> None:
    """Oracle U5: the floor to print next to the number, from the mean of a half-normal in each bin."""
    generator = torch.Generator().manual_seed(0)
    scores = []
    for _ in range(100):
        confidence = torch.rand(count, generator=generator)
        correct = torch.rand(count, generator=generator) < confidence
        scores.append(expected_calibration_error(confidence, correct).item())

    centres = [(b + 0.5) / 15 for b in range(15)]
    floor = sum(math.sqrt(2 / math.pi * p * (1 - p) / (15 * count)) for p in centres)
    assert sum(scores) / len(scores) == pytest.approx(floor, rel=0.1)


def test_aurc_follows_its_definition() -> None:
    uncertainty, errors = torch.tensor([0.3, 0.1, 0.9, 0.5]), torch.tensor([1, 0, 1, 0])

    assert aurc(uncertainty, errors).item() == pytest.approx((0 + 1 / 2 + 1 / 3 + 2 / 4) / 4)


def test_constant_uncertainty_scores_the_error_rate() -> None:
    assert aurc(torch.zeros(4), torch.tensor([1, 0, 0, 0])).item() == pytest.approx(0.25)


def test_oracle_aurc_has_a_closed_form() -> None:
    """Oracle U5: r + (1 - r) log(1 - r)."""
    errors = random_errors(20000, 0.3)
    rate = errors.double().mean().item()

    assert oracle_aurc(errors).item() == pytest.approx(rate + (1 - rate) * math.log(1 - rate), abs=1e-3)


def test_random_uncertainty_has_excess_aurc_near_the_error_rates_distance_to_the_oracle() -> None:
    errors = random_errors(20000, 0.3)
    noise = torch.rand(20000, generator=torch.Generator().manual_seed(1))

    assert aurc(noise, errors).item() == pytest.approx(errors.double().mean().item(), abs=0.02)
    assert prediction_rejection_ratio(noise, errors).item() == pytest.approx(0, abs=0.05)


def test_perfect_ranking_has_ratio_one_and_no_excess() -> None:
    errors = random_errors(200, 0.3)

    assert prediction_rejection_ratio(errors.double(), errors).item() == pytest.approx(1)
    assert excess_aurc(errors.double(), errors).item() == pytest.approx(0)


def test_auroc_counts_pairs_and_halves_ties() -> None:
    positives, negatives = torch.tensor([3.0, 2.0, 1.0]), torch.tensor([2.0, 0.0])

    pairs = [(p > n) + 0.5 * (p == n) for p in (3, 2, 1) for n in (2, 0)]

    assert auroc(positives, negatives).item() == pytest.approx(sum(pairs) / 6)


WEIGHTS = torch.tensor([[2.0, 1.0, 0.0, 3.0, 1.0, 1.0], [1.0] * 6])
"""How often each of six rows is there in two resampled data sets."""
VALUES = torch.tensor([0.2, 0.9, 0.5, 0.5, 0.1, 0.7], dtype=torch.float64)
OUTCOMES = torch.tensor([0.0, 1.0, 1.0, 0.0, 1.0, 0.0], dtype=torch.float64)


def copies(values: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    return values.repeat_interleave(weights.long())


@pytest.mark.parametrize("draw", [0, 1])
def test_weights_are_copies_in_every_score(draw: int) -> None:
    own = WEIGHTS[draw]
    values, outcomes = copies(VALUES, own), copies(OUTCOMES, own)

    error = expected_calibration_error(VALUES, OUTCOMES, weights=WEIGHTS)[draw]
    assert error.item() == pytest.approx(expected_calibration_error(values, outcomes).item())
    rank = spearman(VALUES, OUTCOMES, WEIGHTS)[draw]
    assert rank.item() == pytest.approx(spearmanr(values, outcomes).statistic)
    is_high = OUTCOMES == 1
    area = auroc(VALUES[is_high], VALUES[~is_high], WEIGHTS[:, is_high], WEIGHTS[:, ~is_high])[draw]
    assert area.item() == pytest.approx(roc_auc_score(outcomes, values))


def test_resampled_data_have_the_risk_of_their_copies() -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.rand(300, generator=generator).round(decimals=2)
    errors = (torch.rand(300, generator=generator) < values / 2).double()
    weights = torch.poisson(torch.ones(300), generator=generator)

    for score in (aurc, excess_aurc, prediction_rejection_ratio):
        truth = score(copies(values, weights), copies(errors, weights)).item()
        assert score(values, errors, torch.stack([weights, weights])).tolist() == pytest.approx([truth] * 2)


def test_shares_of_errors_count_as_their_mean() -> None:
    assert aurc(torch.zeros(3), torch.tensor([0.5, 0.0, 0.25])).item() == pytest.approx(0.25)


def test_constant_values_have_no_rank_correlation() -> None:
    assert spearman(torch.ones(4), torch.arange(4)).isnan()
