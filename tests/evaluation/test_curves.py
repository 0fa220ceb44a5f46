"""Curves behind the metrics: their areas are the metrics, their intervals those of scipy."""

import pytest
import torch
from scipy.stats import binomtest

from softspec.evaluation.bootstrap import resampling_of
from softspec.evaluation.curves import reliability, risk_at, risk_coverage, wilson
from softspec.maths.scoring import aurc, expected_calibration_error
from tests.support.judged_records import columns, random_records, record


def test_the_mean_risk_over_all_coverages_is_aurc() -> None:
    """With ties, which count as in random order."""
    generator = torch.Generator().manual_seed(0)
    uncertainty = torch.randint(0, 5, (60,), generator=generator).double()
    errors = torch.randint(0, 2, (60,), generator=generator).double()
    coverage = torch.arange(1, 61, dtype=torch.float64) / 60

    risk = risk_at(coverage, uncertainty, errors, torch.ones(60, dtype=torch.float64))

    assert float(risk.mean()) == pytest.approx(float(aurc(uncertainty, errors)), abs=1e-12)
    assert float(risk[-1]) == pytest.approx(float(errors.mean()), abs=1e-12)


def test_a_row_that_counts_twice_is_two_rows() -> None:
    coverage = torch.linspace(0.1, 1, 10, dtype=torch.float64)
    uncertainty, errors = torch.tensor([0.1, 0.2, 0.3]).double(), torch.tensor([0.0, 1.0, 0.0]).double()

    weighted = risk_at(coverage, uncertainty, errors, torch.tensor([1.0, 2.0, 1.0]).double())
    repeated = risk_at(
        coverage,
        torch.tensor([0.1, 0.2, 0.2, 0.3]).double(),
        torch.tensor([0.0, 1.0, 1.0, 0.0]).double(),
        torch.ones(4).double(),
    )

    torch.testing.assert_close(weighted, repeated)


def test_the_band_is_that_of_resampled_rows() -> None:
    known = columns(random_records(80))

    found = risk_coverage(known, "total", resampling_of(known, 400, 0))

    assert found is not None
    assert found.low is not None
    assert found.high is not None
    assert all(low <= risk <= high for low, risk, high in zip(found.low, found.risk, found.high, strict=True))
    share = found.risk[-1]
    expected = 1.96 * (share * (1 - share) / 80) ** 0.5
    assert found.high[-1] - share == pytest.approx(expected, rel=0.25)


def test_bins_add_up_to_the_calibration_error() -> None:
    known = columns(random_records(200))

    bins = reliability(known, resampling_of(known, 10, 0))

    error = expected_calibration_error(known.values["confidence"], known.values["accuracy"])
    gap = sum(each.n * abs(each.accuracy - each.confidence) for each in bins) / 200
    assert gap == pytest.approx(float(error), abs=1e-12)
    assert sum(each.n for each in bins) == 200


@pytest.mark.parametrize(("successes", "n"), [(0, 7), (3, 7), (7, 7), (1, 1), (50, 200)])
def test_intervals_are_wilsons(successes: int, n: int) -> None:
    expected = binomtest(successes, n).proportion_ci(method="wilson")

    assert wilson(successes / n, n) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_rows_of_one_item_are_one_unit() -> None:
    """Ten copies of a row tell as much as one."""
    known = columns([record(row, [[0.9, 0.1]], answer=0, item=f"i{row % 2}") for row in range(20)])

    (only,) = reliability(known, resampling_of(known, 10, 0))

    assert only.n == 20
    assert only.units == pytest.approx(2)
    assert only.low == pytest.approx(binomtest(2, 2).proportion_ci(method="wilson").low)


def test_rows_without_labels_have_no_curves() -> None:
    known = columns([record(row, [[0.9, 0.1]]) for row in range(3)])

    assert reliability(known, resampling_of(known, 10, 0)) == []
    assert risk_coverage(known, "total", resampling_of(known, 10, 0)) is None
