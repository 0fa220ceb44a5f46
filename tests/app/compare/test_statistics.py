"""Intervals and tests against those of scipy, and against a published example."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from softspec.app.compare.statistics import chi_square_tail, difference, same_distribution, share


@given(st.integers(1, 10_000), st.floats(0, 1))
def test_share_has_wilsons_interval(total: int, part: float) -> None:
    count = round(total * part)

    found = share(count, total)

    known = stats.binomtest(count, total).proportion_ci(0.95, method="wilson")
    assert (found.low, found.high) == pytest.approx((known.low, known.high), abs=1e-9)
    assert found.value == count / total


def test_difference_has_newcombes_interval() -> None:
    """56 of 70 against 48 of 80: Newcombe 1998, Statistics in Medicine 17, Table II (a), method 10."""
    found = difference(share(48, 80), share(56, 70))

    assert found.value == pytest.approx(0.2)
    assert (found.low, found.high) == (pytest.approx(0.0524, abs=5e-5), pytest.approx(0.3339, abs=5e-5))
    assert found.is_more_than_chance


def test_equal_shares_differ_by_nothing_either_way() -> None:
    found = difference(share(3, 40), share(3, 40))

    assert found.value == 0
    assert found.low == pytest.approx(-found.high)
    assert not found.is_more_than_chance


@given(st.floats(0, 200), st.integers(1, 20))
def test_tail_is_that_of_the_chi_square_distribution(statistic: float, degrees: int) -> None:
    assert chi_square_tail(statistic, degrees) == pytest.approx(
        float(stats.chi2.sf(statistic, degrees)), rel=1e-9, abs=1e-12
    )


@given(st.lists(st.tuples(st.integers(50, 1000), st.integers(50, 1000)), min_size=2, max_size=14))
def test_full_buckets_are_compared_as_scipy_does(pairs: list[tuple[int, int]]) -> None:
    one, other = zip(*pairs, strict=True)
    known = stats.chi2_contingency([one, other], correction=False)
    if known.expected_freq.min() < 5:
        return

    found = same_distribution(one, other)

    assert found is not None
    if found.degrees == known.dof:  # else buckets were merged, though each cell alone would have done
        assert found.statistic == pytest.approx(known.statistic)
        assert found.p == pytest.approx(known.pvalue, rel=1e-6, abs=1e-12)


def test_thin_buckets_are_merged_with_their_neighbours() -> None:
    found = same_distribution([50, 1, 1, 48, 1], [50, 30, 3, 10, 1])

    known = stats.chi2_contingency([[50, 1, 50], [50, 30, 14]], correction=False)
    assert found is not None
    assert (found.statistic, found.degrees) == (pytest.approx(known.statistic), known.dof)


@pytest.mark.parametrize(
    ("one", "other"), [([0, 0], [5, 5]), ([], []), ([3, 2], [4, 1]), ([100, 0], [100, 0])]
)
def test_too_little_is_not_compared(one: list[int], other: list[int]) -> None:
    assert same_distribution(one, other) is None
