"""Gains and the price of routing, on tables whose answers are known."""

import math

import pytest
import torch

from softspec.train.diagnosis.price import Judged, advantages, mean_gain, price_nats


def habits(num_sources: int, gain: float, rows: int = 400, noise: float = 0.0) -> Judged:
    """Every source's own adapter is `gain` nats better on its rows than the one for all; the others are hopeless."""
    generator = torch.Generator().manual_seed(0)
    source_of = torch.arange(rows) % num_sources
    together = torch.full((rows,), -2.0, dtype=torch.float64)
    apart = torch.full((num_sources, rows), -50.0, dtype=torch.float64)
    own = together + gain + noise * torch.randn(rows, generator=generator, dtype=torch.float64)
    apart[source_of, torch.arange(rows)] = own
    names = tuple(f"annotator {number}" for number in range(num_sources))
    return Judged(names, together, apart, source_of, torch.ones(rows, dtype=torch.float64))


def test_the_price_of_four_members_at_the_default_order() -> None:
    assert price_nats(0.8, 4) == pytest.approx(1.733, abs=1e-3)


@pytest.mark.parametrize(("group_rows", "pays"), [(4, False), (8, False), (9, True), (16, True)])
def test_a_unit_must_gain_more_than_routing_costs(group_rows: int, pays: bool) -> None:
    """0.2 nats a row, four members: 1.733 nats are 8.7 rows."""
    found = advantages(habits(4, 0.2), [0.8], group_rows, num_members=4)[0]

    assert found.value == pytest.approx(0.2 - price_nats(0.8, 4) / group_rows, abs=1e-9)
    assert (found.value > 0) is pays


@pytest.mark.parametrize("renyi_alpha", [0.3, 0.5, 0.8, 1.0])
def test_two_sources_share_four_members(renyi_alpha: float) -> None:
    """Each has two, so that choosing costs log 2."""
    found = advantages(habits(2, 1.0), [renyi_alpha], 1, num_members=4)[0]

    assert found.value == pytest.approx(1 - math.log(2) / renyi_alpha, abs=1e-5)


def test_of_many_sources_with_two_tastes_two_adapters_are_enough() -> None:
    """Forty annotators, whose adapters serve everyone with their taste."""
    judged = habits(40, 1.0)
    same = (torch.arange(40)[:, None] - judged.source_of) % 2 == 0
    judged.apart[same] = -1.0

    found = advantages(judged, [0.8], 1, num_members=2)[0]

    assert found.value == pytest.approx(1 - math.log(2) / 0.8, abs=1e-9)


def test_gains_have_intervals_over_rows() -> None:
    judged = habits(2, 0.2, noise=1.0)

    found, first = mean_gain(judged), mean_gain(judged, source=0)

    assert found.n == 400
    assert first.n == 200
    assert found.low < 0.2 < found.high
    assert found.high - found.low == pytest.approx(2 * 1.96 / 20, rel=0.15)


def test_rows_count_as_they_weigh() -> None:
    judged = habits(2, 1.0)
    judged.apart[1, judged.source_of == 1] = judged.together[0]
    judged.weights[judged.source_of == 1] = 3.0

    assert mean_gain(judged).value == pytest.approx(0.25)
