"""What is said to do next: one test for each rule, on findings that only it fits."""

import math
from dataclasses import replace
from typing import Any

import pytest

from softspec.maths.stability import CriticalAlpha, Estimate
from softspec.train.diagnosis.ambiguity import Ambiguity
from softspec.train.diagnosis.findings import ORDERS, ROWS, Findings, Setting, SourceGains, Stability, as_json
from softspec.train.diagnosis.growth import Growth, growth
from softspec.train.diagnosis.report import page
from softspec.train.diagnosis.words import Advice, advise

SETTING = Setting(4, 0.8, "group", 4, 4, 4, 200)


def about(value: float, width: float = 0.01) -> Estimate:
    return Estimate(value, value - width, value + width, 100)


def gains(per_row: float, price: float = math.log(4)) -> SourceGains:
    """Sources that gain so much a row, of which specialising costs log 4 / alpha a unit."""
    advantages = {
        (order, rows): about(per_row - price / order / rows, 1e-3) for order in ORDERS for rows in ROWS
    }
    return SourceGains(60, 0, {"a": about(per_row), "b": about(per_row)}, about(per_row), advantages)


def decomposed(
    perplexity: float, advantage: Estimate | None = None, load: tuple[float, ...] = (0.25,) * 4
) -> Ambiguity:
    return Ambiguity(
        about(0.5), about(0.4), about(1.5), about(2), advantage and about(0.2), advantage, load, perplexity
    )


def grown(rate: float, last: float, steps: int = 60) -> Growth:
    """A spread that has grown at this rate to its last value."""
    return growth(4, [(step, last * math.exp(rate * (step - steps))) for step in range(4, steps + 1, 4)])


def verdict(**parts: Any) -> Advice:
    return advise(Findings(parts.pop("setting", SETTING), **parts))


def test_a_starved_member_is_named() -> None:
    advice = verdict(ambiguity=decomposed(1.2, load=(0.5, 0.49, 0.005, 0.005)), sources=gains(0.2))

    assert advice.verdict == "starved"
    assert "Members 2, 3 explain next to nothing" in advice.text


@pytest.mark.parametrize(
    ("advantage", "expected", "says"),
    [
        (None, "specialised", "give it as --single"),
        (about(0.3), "specialised", "0.300 nats per row (0.290 to 0.310) better than the one adapter"),
        (about(0.0), "one_adapter", "as good as the one adapter"),
        (about(-0.3), "one_adapter", "worse than the one adapter: by 0.300 nats"),
    ],
)
def test_members_that_have_parted_are_compared_with_one_adapter(
    advantage: Estimate | None, expected: str, says: str
) -> None:
    advice = verdict(ambiguity=decomposed(1.3, advantage), sources=gains(0.2))

    assert advice.verdict == expected
    assert says in advice.text


def test_where_nothing_pays_one_adapter_is_enough() -> None:
    advice = verdict(sources=gains(0.01))

    assert (advice.verdict, advice.settings) == ("one_adapter", {"num_members": 1})
    assert "0.010 nats per row" in advice.text


def test_groups_with_too_few_rows() -> None:
    """0.2 nats a row are 1.73 nats after nine rows."""
    advice = verdict(sources=gains(0.2))

    assert (advice.verdict, advice.settings) == ("too_few_rows", {"group_rows": 16})
    assert "up to 1.73 nats" in advice.text


def test_rows_that_are_routed_one_by_one() -> None:
    advice = verdict(setting=replace(SETTING, granularity="sequence", rows_together=1), sources=gains(0.2))

    assert (advice.verdict, advice.settings) == ("too_few_rows", {"granularity": "group", "group_rows": 16})


def test_an_order_that_is_too_small() -> None:
    advice = verdict(setting=replace(SETTING, renyi_alpha=0.3, rows_together=32), sources=gains(0.1))

    assert (advice.verdict, advice.settings) == ("subcritical", {"renyi_alpha": 0.5})


def test_an_order_and_groups_that_are_both_too_small() -> None:
    advice = verdict(setting=replace(SETTING, renyi_alpha=0.3), sources=gains(0.07))

    assert advice.settings == {"renyi_alpha": 0.8, "granularity": "group", "group_rows": 32}


def test_independent_members_are_told_that_they_are() -> None:
    advice = verdict(setting=replace(SETTING, renyi_alpha=0.0, rows_together=32), sources=gains(0.2))

    assert (advice.verdict, advice.settings) == ("subcritical", {"renyi_alpha": 0.3})
    assert verdict(setting=replace(SETTING, renyi_alpha=0.0)).verdict == "subcritical"


@pytest.mark.parametrize(
    ("phi", "expected"), [(Estimate(2.5, 2.2, 2.8, 60), "subcritical"), (about(0.5), "one_adapter")]
)
def test_without_sources_the_critical_alpha_speaks(phi: Estimate, expected: str) -> None:
    stability = Stability(CriticalAlpha(phi), {}, 0.1)

    advice = verdict(setting=replace(SETTING, renyi_alpha=0.3), stability=stability)

    assert advice.verdict == expected


def test_steps_with_too_few_groups() -> None:
    advice = verdict(setting=replace(SETTING, rows_together=16, groups_per_step=1), sources=gains(0.2))

    assert (advice.verdict, advice.settings) == ("too_few_groups", {"gradient_accumulation_steps": 16})


@pytest.mark.parametrize(("total", "expected"), [(60, "too_few_steps"), (500, "growing")])
def test_steps_until_members_part(total: int, expected: str) -> None:
    """From 0.001 nats at 5 % a step to half of log 2 takes 117 steps."""
    found = grown(0.05, 0.001)

    advice = verdict(
        setting=replace(SETTING, rows_together=16, total_steps=total), sources=gains(0.2), growth=found
    )

    assert found.steps_to_go == 117
    assert advice.verdict == expected
    assert "after about 177" in advice.text


@pytest.mark.parametrize(
    ("rows", "is_finished", "expected"),
    [(4, False, "too_few_rows"), (16, False, "growing"), (4, True, "specialised")],
)
def test_members_that_part_in_the_first_steps_have_not_specialised_yet(
    rows: int, is_finished: bool, expected: str
) -> None:
    found = replace(grown(0.05, 0.6), is_finished=is_finished)

    advice = verdict(setting=replace(SETTING, rows_together=rows), sources=gains(0.2), growth=found)

    assert advice.verdict == expected


def test_members_that_could_part_but_do_not_move() -> None:
    advice = verdict(
        setting=replace(SETTING, rows_together=16), sources=gains(0.2), growth=grown(-0.05, 0.001)
    )

    assert advice.verdict == "too_few_steps"
    assert "b_init_std" in advice.text


def test_settings_that_pay_are_let_go() -> None:
    assert verdict(setting=replace(SETTING, rows_together=16), sources=gains(0.2)).verdict == "pays"


def test_one_member_has_nobody_to_part_from() -> None:
    assert verdict(setting=replace(SETTING, num_members=1)).verdict == "one_adapter"


def test_nothing_known_is_said_to_be_nothing() -> None:
    assert verdict().verdict == "unclear"


def test_a_page_has_what_was_found_and_json_has_no_infinity() -> None:
    found = Findings(
        SETTING,
        decomposed(1.3, about(0.3)),
        gains(0.2),
        Stability(CriticalAlpha(Estimate(0, 0, 1, 9)), {1: CriticalAlpha(about(2))}, -0.5),
        grown(0.05, 0.001),
        ("a note",),
    )

    text, content = page(found, advise(found)), as_json(found)

    assert "critical alpha          none (1.00 to none)" in text
    assert "verdict: specialised" in text
    assert content["stability"]["critical_alpha"]["value"] is None
    assert content["sources"]["price_nats"] == pytest.approx(1.733, abs=1e-3)
    assert content["sources"]["fewest_rows"] == 16
    assert content["growth"]["steps_to_go"] == 117
