"""The schedule: rates that warm up and decay, nothing to remember between steps."""

import math

import pytest

from softspec.train.loop.schedule import learning_rate, reach_nats, renyi_alpha, total_steps
from tests.support.tiny_training import config_of_no_files


def test_max_steps_overrides_epochs() -> None:
    assert total_steps(config_of_no_files(num_epochs=3), steps_per_epoch=4) == 12
    assert total_steps(config_of_no_files(num_epochs=0.5), steps_per_epoch=4) == 2
    assert total_steps(config_of_no_files(num_epochs=3, max_steps=5), steps_per_epoch=4) == 5


@pytest.mark.parametrize(
    ("kind", "last"),
    [("constant", 1.0), ("linear", 1 / 9), ("cosine", 0.0301536896)],
    ids=lambda value: str(value),
)
def test_rates_warm_up_from_above_zero_and_decay_to_above_zero(kind: str, last: float) -> None:
    """A first step at rate zero would leave every member where it was."""
    config = config_of_no_files(learning_rate=1.0, lr_scheduler_type=kind, warmup_ratio=0.1)

    rates = [learning_rate(config, step, 10) for step in range(10)]

    assert rates[0] == rates[1] == 1.0
    assert rates[-1] == pytest.approx(last)
    assert rates == sorted(rates, reverse=True)


def test_a_longer_warm_up_is_linear() -> None:
    config = config_of_no_files(learning_rate=1.0, lr_scheduler_type="constant", warmup_ratio=0.4)

    assert [learning_rate(config, step, 10) for step in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]


def test_alpha_rises_from_zero_and_stays() -> None:
    config = config_of_no_files(renyi_alpha=0.8, alpha_warmup_ratio=0.4)

    assert [renyi_alpha(config, step, 10) for step in range(6)] == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 0.8])
    assert renyi_alpha(config_of_no_files(renyi_alpha=0.8), 0, 10) == 0.8


def test_ever_fewer_members_must_share_until_none_need_to() -> None:
    config = config_of_no_files(num_members=4)

    shared_by = [4 / math.exp(reach_nats(config, step, 10)) for step in range(7)]

    assert shared_by == pytest.approx([3.625, 3.25, 2.875, 2.5, 2.125, 1.75, 1.375])
    assert [reach_nats(config, step, 10) for step in range(7, 10)] == [math.inf] * 3


def test_the_plain_schedule_never_bounds_and_one_member_has_nothing_to_share() -> None:
    assert reach_nats(config_of_no_files(schedule="plain"), 0, 10) == math.inf
    assert reach_nats(config_of_no_files(num_members=1), 0, 10) == 0


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, True),
        ({"schedule": "plain"}, False),
        ({"reseed_starved": False}, False),
        ({"schedule": "plain", "reseed_starved": True}, True),
    ],
    ids=str,
)
def test_starved_members_are_reseeded_by_the_schedule_unless_told(
    settings: dict[str, object], expected: bool
) -> None:
    assert config_of_no_files(**settings).reseeds_starved is expected
