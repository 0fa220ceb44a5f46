"""Walks through options: every option can be read from one of them, in as few groups and steps as that takes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from softspec.engine.front.walks import walks_through

OPTIONS = st.lists(
    st.lists(st.integers(0, 3), min_size=1, max_size=5).map(tuple), min_size=1, max_size=40, unique=True
)


@given(OPTIONS, st.integers(1, 5))
def test_every_option_is_read_in_some_walk_and_no_step_watches_too_many(
    options: list[tuple[int, ...]], most_watched: int
) -> None:
    plan = walks_through(options, most_watched)

    assert sorted(plan.walk_of) == sorted(options)
    for option, number in plan.walk_of.items():
        walk, last = plan.walks[number], len(option) - 1
        assert walk.path[:last] == option[:last]
        assert option[last] in walk.watched[last]
    for walk in plan.walks:
        assert len(walk.forced) == len(walk.watched_by_step) == len(walk.path) + 1
        assert walk.forced[:-1] == walk.path
        assert max(map(len, walk.watched_by_step)) <= most_watched


@given(OPTIONS, st.integers(1, 5))
def test_each_last_token_is_watched_once(options: list[tuple[int, ...]], most_watched: int) -> None:
    plan = walks_through(options, most_watched)

    read = [
        (*walk.path[:step], token)
        for walk in plan.walks
        for step, tokens in enumerate(walk.watched_by_step)
        for token in tokens
    ]
    assert sorted(read) == sorted(options)


@given(OPTIONS)
def test_there_is_one_walk_for_each_way_that_is_not_the_beginning_of_another(
    options: list[tuple[int, ...]],
) -> None:
    starts = {option[:-1] for option in options}
    ways = [one for one in starts if not any(other[: len(one)] == one != other for other in starts)]

    assert sorted(walk.path for walk in walks_through(options, 5).walks) == sorted(ways)


@pytest.mark.parametrize(
    ("options", "forced"),
    [
        ([(5,), (6,), (7,)], [(5,)]),
        ([(5,), (5, 6), (5, 6, 7)], [(5, 6, 7)]),
        ([(5, 6), (5, 7), (8, 9)], [(5, 6), (8, 9)]),
        ([(5, 6, 7), (5, 8)], [(5, 6, 7)]),
    ],
    ids=["single tokens", "prefixes of one another", "two ways", "one way passes the other's last step"],
)
def test_a_walk_ends_at_the_step_before_the_last_token(
    options: list[tuple[int, ...]], forced: list[tuple[int, ...]]
) -> None:
    assert sorted(walk.forced for walk in walks_through(options, 128).walks) == forced


def test_more_last_tokens_than_a_step_may_watch_take_more_groups() -> None:
    plan = walks_through([(token,) for token in range(300)], 128)

    assert [len(walk.watched_by_step[0]) for walk in plan.walks] == [128, 128, 44]
