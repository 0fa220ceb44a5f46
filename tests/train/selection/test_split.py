"""Which held-out units belong together, and how they are dealt into two parts."""

import random
from collections import Counter
from dataclasses import replace

import pytest

from softspec.errors import DataError
from softspec.train.data.units import Example, Preference
from softspec.train.selection.split import clusters, deal, pieces
from tests.support.tiny_training import config_of_no_files

SEQUENCE = config_of_no_files()
GROUP = config_of_no_files(granularity="group", group_rows=4)


def unit(prompt: int, source: str | None = None, group: str | None = None, answer: int = 1) -> Example:
    return Example((prompt,), (answer,), source, group)


def test_units_with_one_prompt_come_into_one_part() -> None:
    units = [unit(number % 100, answer=number) for number in range(300)]

    first, last = deal(units, SEQUENCE, 0.3, "eval_file")

    assert not {units[n].prompt_ids for n in first} & {units[n].prompt_ids for n in last}
    assert len({units[n].prompt_ids for n in last}) == 30
    assert sorted(first + last) == list(range(300))


def test_every_source_has_its_share_of_the_second_part() -> None:
    units = [unit(number, source="rare" if number % 10 == 0 else "common") for number in range(400)]

    _, last = deal(units, SEQUENCE, 0.25, "eval_file")

    assert Counter(units[n].source for n in last) == {"rare": 10, "common": 90}


def test_what_comes_into_a_part_does_not_depend_on_the_order_of_rows() -> None:
    units = [unit(number, source="AB"[number % 2]) for number in range(100)]
    shuffled = random.Random(0).sample(units, len(units))

    _, last = deal(units, SEQUENCE, 0.3, "eval_file")
    _, other = deal(shuffled, SEQUENCE, 0.3, "eval_file")

    assert {units[n].prompt_ids for n in last} == {shuffled[n].prompt_ids for n in other}


def test_many_groups_are_kept_whole() -> None:
    units = [unit(number, group=str(number % 40)) for number in range(400)]

    first, last = deal(units, GROUP, 0.3, "eval_file")

    assert not {units[n].bundle for n in first} & {units[n].bundle for n in last}


def test_of_few_groups_each_has_pieces_in_both_parts() -> None:
    """Four annotators: a part without one of them would say nothing of it."""
    units = [unit(number, group=str(number % 4)) for number in range(400)]

    first, last = deal(units, GROUP, 0.3, "eval_file")

    names = pieces(units, GROUP)
    assert not {names[n] for n in first} & {names[n] for n in last}
    assert set(Counter(units[n].bundle for n in last).values()) <= {28, 32}
    assert set(Counter(names).values()) == {4}


def test_clusters_of_preferences_go_by_the_prompt_too() -> None:
    pair = Preference(unit(7), unit(7, answer=2))

    first, second, other = clusters([pair, replace(pair, weight=2.0), Preference(unit(8), unit(8))], SEQUENCE)

    assert first == second != other


def test_a_held_out_row_without_a_group_is_named() -> None:
    with pytest.raises(DataError, match="eval_file: example 2 has no 'group'"):
        deal([unit(0, group="a"), unit(1)], GROUP, 0.3, "eval_file")


def test_too_few_prompts_are_refused_with_their_number() -> None:
    with pytest.raises(DataError, match=r"eval_file has 12 different prompts or groups.*expected at least 8"):
        deal([unit(number % 12) for number in range(120)], SEQUENCE, 0.3, "eval_file")
