"""The CPU's loop for seeded draws gives the very tokens of `perturbed_argmax`."""

import math

import pytest
import torch
from torch import Tensor

from softspec.engine.worker.cpu_drawing import draw_rows
from softspec.maths.sampling import perturbed_argmax


def settings(groups: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(groups)
    seeds = torch.randint(0, 2**63 - 1, (groups,), generator=generator)
    seeds[:2] = torch.tensor([0, 2**63 - 1])
    return seeds, torch.randint(0, 4000, (groups,), generator=generator)


@pytest.mark.parametrize("vocab_size", [2, 40, 1024, 5000])
@pytest.mark.parametrize("spread", [0.0, 3.0, 1e3, 1e7], ids="spread {}".format)
def test_draws_are_those_of_the_mathematics(vocab_size: int, spread: float) -> None:
    """With all tokens alike, as models have them, and scaled by a temperature of nearly zero."""
    seeds, positions = settings(64)
    scores = spread * torch.randn(64, vocab_size, generator=torch.Generator().manual_seed(vocab_size))

    found = draw_rows(scores, seeds, positions)

    assert torch.equal(found, perturbed_argmax(scores, seeds, positions))


def test_tokens_that_were_cut_are_not_drawn() -> None:
    seeds, positions = settings(64)
    scores = torch.randn(64, 3000, generator=torch.Generator().manual_seed(0))
    scores = scores.masked_fill(scores < scores.topk(3).values[:, 2:], -math.inf)
    scores[7], scores[8, 1:] = -math.inf, -math.inf

    found = draw_rows(scores, seeds, positions)

    assert torch.equal(found, perturbed_argmax(scores, seeds, positions))
    assert found[7:9].tolist() == [0, 0]


@pytest.mark.parametrize("value", [math.nan, math.inf], ids=str)
def test_a_row_without_finite_numbers_gets_some_token(value: float) -> None:
    """Its group ends; the token must only be one."""
    seeds, positions = settings(2)
    scores = torch.zeros(2, 40)
    expected = draw_rows(scores, seeds, positions)
    scores[1, 5] = value

    found = draw_rows(scores, seeds, positions)

    assert found[0] == expected[0]
    assert 0 <= found[1] < 40
