"""The order of the data: every example once an epoch, and groups in pieces that meet in a step."""

from typing import Any

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
