"""The diagnostics that read responsibilities: hard, flat and random routing, with and without known sources."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from softspec.maths.renyi import (
    load,
    purity,
    routing_perplexity,
    soft_source_mi,
    specialisation,
)

HARD = torch.tensor([[1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 1.0]])
FLAT = torch.full((2, 4), 0.5)
SOURCES = torch.tensor([7, 7, 3, 3])


def test_hard_routing_reads_as_one_member_an_example_and_all_members_overall() -> None:
    assert load(HARD).tolist() == [0.5, 0.5]
    assert routing_perplexity(HARD).item() == pytest.approx(1)
    assert specialisation(HARD).item() == pytest.approx(math.log(2))


def test_flat_routing_reads_as_no_specialisation() -> None:
    assert routing_perplexity(FLAT).item() == pytest.approx(2)
    assert specialisation(FLAT).item() == pytest.approx(0)
    assert soft_source_mi(FLAT, SOURCES).item() == pytest.approx(0)


def test_routing_along_sources_carries_all_their_information() -> None:
    assert soft_source_mi(HARD, SOURCES).item() == pytest.approx(math.log(2))
    assert purity(HARD, SOURCES).item() == pytest.approx(1)


def test_routing_across_sources_carries_none() -> None:
    across = torch.tensor([7, 3, 7, 3])

    assert soft_source_mi(HARD, across).item() == pytest.approx(0)
    assert purity(HARD, across).item() == pytest.approx(0.5)


def test_dust_on_flat_routing_fools_purity_but_not_the_soft_score() -> None:
    """Why soft mutual information is the primary number."""
    dusty = FLAT + 1e-9 * (HARD.double() - 0.5)

    assert purity(dusty, SOURCES).item() == pytest.approx(1)
    assert soft_source_mi(dusty, SOURCES).item() < 1e-12


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 10_000), st.integers(2, 5), st.integers(1, 4))
def test_source_information_is_bounded_by_specialisation(seed: int, members: int, sources: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    shares = (3 * torch.randn(members, 30, generator=generator, dtype=torch.float64)).softmax(0)
    source_ids = torch.randint(sources, (30,), generator=generator)

    information = soft_source_mi(shares, source_ids)

    assert 0 <= information <= specialisation(shares) + 1e-12
    assert information <= math.log(sources) + 1e-12


@pytest.mark.parametrize("diagnostic", [load, routing_perplexity, specialisation])
def test_an_example_of_weight_three_reads_as_three_examples(diagnostic: Callable[..., Tensor]) -> None:
    generator = torch.Generator().manual_seed(0)
    shares = torch.randn(3, 4, generator=generator, dtype=torch.float64).softmax(0)
    counts = torch.tensor([3, 1, 2, 1])

    weighted = diagnostic(shares, counts)

    torch.testing.assert_close(weighted, diagnostic(shares.repeat_interleave(counts, 1)))
    assert not torch.allclose(weighted, diagnostic(shares))


def test_weights_count_in_the_information_about_sources_too() -> None:
    shares = torch.tensor([[0.9, 0.2, 0.6], [0.1, 0.8, 0.4]])
    sources, counts = torch.tensor([1, 0, 1]), torch.tensor([2, 1, 3])

    weighted = soft_source_mi(shares, sources, counts)

    repeated = soft_source_mi(shares.repeat_interleave(counts, 1), sources.repeat_interleave(counts))
    torch.testing.assert_close(weighted, repeated)
