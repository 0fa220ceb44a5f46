"""What held-out units come to: sums by what is routed, means per example, differences with their errors."""

import math

import pytest
import torch

from softspec.train.data.units import Example
from softspec.train.selection.units import Frame, frame_of
from tests.support.tiny_training import config_of_no_files


def example(prompt: int, group: str | None = None, tokens: int = 1, weight: float = 1.0) -> Example:
    return Example((prompt,), (1,) * tokens, None, group, weight)


def plain_frame(count: int) -> Frame:
    """Every column is a unit, a cluster and an example."""
    numbers, ones = torch.arange(count), torch.ones(count, dtype=torch.float64)
    return Frame(numbers, ones, ones, numbers, ones)


def test_the_loss_of_a_unit_is_its_mixtures_nll() -> None:
    frame = frame_of([example(0), example(1, weight=3.0)], config_of_no_files())
    loglik = torch.tensor([[-1.0, -2.0], [-3.0, -0.5]], dtype=torch.float64)
    first = -math.log((math.exp(-1) + math.exp(-3)) / 2)
    second = -math.log((math.exp(-2) + math.exp(-0.5)) / 2)

    losses = frame.losses(frame.columns(loglik))

    assert losses.tolist() == pytest.approx([first, 3 * second])
    assert frame.mean(losses) == pytest.approx((first + 3 * second) / 4)


def test_a_group_is_explained_by_one_member_as_a_whole() -> None:
    """Two rows of a group: the members' likelihoods are multiplied before they are mixed."""
    config = config_of_no_files(granularity="group", group_rows=2)
    frame = frame_of([example(0, "a"), example(1, "a"), example(2, "b"), example(3, "b")], config)
    loglik = torch.tensor([[-1.0, -1.0, -9.0, -9.0], [-9.0, -9.0, -1.0, -1.0]], dtype=torch.float64)

    losses = frame.losses(frame.columns(loglik))

    expected = -math.log((math.exp(-2) + math.exp(-18)) / 2)
    assert losses.tolist() == pytest.approx([expected, expected])
    assert frame.mean(losses) == pytest.approx(expected / 2)


def test_long_groups_are_routed_in_pieces_as_in_training() -> None:
    config = config_of_no_files(granularity="group", group_rows=2)
    frame = frame_of([example(number, "a") for number in range(5)], config)
    columns = frame.columns(torch.ones(1, 5, dtype=torch.float64))

    assert columns.tolist() == [[2, 2, 1]]
    assert frame.sizes.tolist() == [2, 2, 1]


def test_tokens_are_mixed_one_by_one() -> None:
    frame = frame_of([example(0, tokens=2), example(1)], config_of_no_files(granularity="token"))
    loglik = torch.tensor([[-1.0, -9.0, -1.0], [-9.0, -1.0, -1.0]], dtype=torch.float64)
    token = -math.log((math.exp(-1) + math.exp(-9)) / 2)

    losses = frame.losses(frame.columns(loglik))

    assert losses.tolist() == pytest.approx([2 * token, 1.0])


def test_a_difference_of_single_units_has_the_textbook_error() -> None:
    frame = plain_frame(200)
    one, other = torch.randn(2, 200, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    gap = frame.difference(one, other)

    assert gap.value == pytest.approx((one - other).mean().item())
    assert gap.standard_error == pytest.approx(((one - other).std() / 200**0.5).item())


def test_units_of_a_cluster_count_as_one_draw() -> None:
    """Each value five times: the error must not shrink, and the bootstrap agrees with it."""
    values = torch.randn(60, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    single, zero = plain_frame(60), torch.zeros(60, dtype=torch.float64)
    fivefold = Frame(
        torch.arange(300),
        torch.ones(300, dtype=torch.float64),
        torch.ones(300, dtype=torch.float64),
        torch.arange(60).repeat(5),
        torch.full((60,), 5.0, dtype=torch.float64),
    )

    alone, repeated = single.difference(values, zero), fivefold.difference(5 * values, zero)

    assert repeated.value == pytest.approx(alone.value)
    assert repeated.standard_error == pytest.approx(alone.standard_error)
    low, high = fivefold.interval(5 * values, zero)
    assert (high - low) / (2 * 1.96) == pytest.approx(repeated.standard_error, rel=0.1)
    assert low < repeated.value < high
