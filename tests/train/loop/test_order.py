"""The order of the data: every example once an epoch, and groups in pieces that meet in a step."""

from typing import Any

import pytest

from softspec.train.config import TrainConfig
from softspec.train.loop.schedule import ExampleOrder
from tests.support.tiny_training import config_of_no_files


def settings(**changes: Any) -> TrainConfig:
    """A configuration with four examples a step."""
    return config_of_no_files(gradient_accumulation_steps=2, **changes)


def epochs(order: ExampleOrder, count: int) -> list[list[int]]:
    """The examples of each epoch."""
    steps = order.steps_per_epoch
    return [
        [index for step in range(steps) for index in order.indices(epoch * steps + step)]
        for epoch in range(count)
    ]


def test_an_epoch_sees_every_example_once_and_the_next_one_in_another_order() -> None:
    order = ExampleOrder(settings(), 10)

    first, second = epochs(order, 2)

    assert order.steps_per_epoch == 3
    assert sorted(first) == sorted(second) == list(range(10))
    assert first != second


def test_the_order_depends_on_the_seed_alone() -> None:
    assert ExampleOrder(settings(), 100).indices(30) == ExampleOrder(settings(num_members=1), 100).indices(30)
    assert ExampleOrder(settings(), 100).indices(30) != ExampleOrder(settings(seed=1), 100).indices(30)


def test_any_step_can_be_the_first_that_is_asked_for() -> None:
    asked = ExampleOrder(settings(), 10)
    asked.indices(0)

    assert ExampleOrder(settings(), 10).indices(7) == asked.indices(7)


def test_examples_of_a_group_come_in_pieces() -> None:
    """Three annotators of eight examples each, two at a time."""
    order = ExampleOrder(
        settings(granularity="group", group_rows=2), 24, [range(annotator, 24, 3) for annotator in range(3)]
    )

    first, second = epochs(order, 2)

    assert sorted(first) == list(range(24))
    assert order.examples_per_piece == 2
    assert (
        ExampleOrder(settings(granularity="group", group_rows=5), 24, [range(8)] * 3).examples_per_piece == 4
    )
    assert ExampleOrder(settings(), 24).examples_per_piece == 1
    pieces = [(first[at] % 3, first[at + 1] % 3) for at in range(0, 24, 2)]
    assert all(one == other for one, other in pieces)
    assert len({one for one, _ in pieces[:6]}) > 1
    assert first != second


@pytest.mark.parametrize("sizes", [[16] * 7, [40, 24, 16, 8, 8], [4] * 12], ids=str)
def test_a_step_has_as_many_groups_as_it_can(sizes: list[int]) -> None:
    """Four pieces of four examples a step, of as many annotators as there still are."""
    ends = [sum(sizes[: number + 1]) for number in range(len(sizes))]
    bundles = [range(end - size, end) for end, size in zip(ends, sizes, strict=True)]
    config = settings(granularity="group", group_rows=4, micro_batch_size=8)
    order = ExampleOrder(config, sum(sizes), bundles)

    (epoch,) = epochs(order, 1)

    owner = {example: number for number, bundle in enumerate(bundles) for example in bundle}
    mixed = [len({owner[example] for example in epoch[at : at + 16]}) for at in range(0, len(epoch) - 16, 16)]
    assert sorted(epoch) == list(range(sum(sizes)))
    assert sum(groups == 4 for groups in mixed) >= 0.6 * len(mixed)
    assert min(mixed) > 1


def test_rare_groups_are_not_used_up_first() -> None:
    """One annotator has most of the rows: the others are spread over the epoch all the same."""
    bundles = [range(4000), *(range(4000 + 8 * number, 4008 + 8 * number) for number in range(10))]
    config = settings(granularity="group", group_rows=4, micro_batch_size=8)

    (epoch,) = epochs(ExampleOrder(config, 4080, bundles), 1)

    assert sorted(epoch) == list(range(4080))
    assert sum(example >= 4000 for example in epoch[:2040]) < 60


def test_a_step_of_groups_has_one_for_each_member_by_default() -> None:
    config = config_of_no_files(granularity="group", gradient_accumulation_steps=None, num_members=4)

    assert config.group_rows == 16
    assert config.examples_per_step == 64
    assert config_of_no_files(gradient_accumulation_steps=None).examples_per_step == 4
