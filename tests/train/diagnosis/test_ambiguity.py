"""The ambiguity decomposition against its definition, on tables small enough to do by hand."""

import math

import pytest
import torch
from torch import Tensor

from softspec.maths.mixture import uniform_log_weights
from softspec.train.diagnosis.ambiguity import ambiguity

LOGLIK = torch.tensor([[-1.0, -3.0, -1.0, -3.0], [-3.0, -1.0, -3.0, -1.0]], dtype=torch.float64)
WEIGHTS, PAIR = torch.ones(4, dtype=torch.float64), uniform_log_weights(2)


def test_gain_is_the_jensen_gap_and_cost_what_members_lose_alone() -> None:
    single = torch.full((4,), -1.8, dtype=torch.float64)

    found = ambiguity(LOGLIK, PAIR, 0.5, WEIGHTS, single)

    mixture = -math.log(0.5 * (math.exp(-1) + math.exp(-3)))
    assert found.member_nll.value == pytest.approx(2)
    assert found.mixture_nll.value == pytest.approx(mixture)
    assert found.gain.value == pytest.approx(2 - mixture)
    assert found.gain_of_loss.value == pytest.approx(
        2 + 2 * math.log(0.5 * (math.exp(-0.5) + math.exp(-1.5)))
    )
    assert found.cost
    assert found.advantage
    assert found.cost.value == pytest.approx(0.2)
    assert found.advantage.value == pytest.approx(found.gain.value - found.cost.value)


def test_members_that_are_alike_gain_nothing() -> None:
    found = ambiguity(LOGLIK[:1].expand(2, 4), PAIR, 0.8, WEIGHTS)

    assert found.gain.value == pytest.approx(0, abs=1e-12)
    assert found.routing_perplexity == pytest.approx(2)
    assert found.advantage is None


@pytest.mark.parametrize(("unit_of", "expected"), [([0, 1, 0, 1], 4.0), ([0, 0, 1, 1], 0.0)])
def test_rows_of_a_unit_are_routed_as_one(unit_of: list[int], expected: float) -> None:
    """Two rows that agree make a gap of 4 nats; two that contradict each other make none."""
    found = ambiguity(LOGLIK, PAIR, 0.8, WEIGHTS, unit_of=torch.tensor(unit_of))

    share = torch.tensor([expected, 0.0]).softmax(0)
    assert found.routing_perplexity == pytest.approx(entropy(share).exp().item(), rel=1e-6)


def test_rows_count_as_they_weigh() -> None:
    weights = torch.tensor([3.0, 0, 1, 0], dtype=torch.float64)

    found = ambiguity(LOGLIK * torch.tensor([1.0, 1, 2, 1]), PAIR, 0.8, weights)

    assert found.member_nll.value == pytest.approx((3 * 2 + 4) / 4)


def entropy(shares: Tensor) -> Tensor:
    return -(shares * shares.log()).sum()
