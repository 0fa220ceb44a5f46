"""What rows say beside their text: nothing is taken for a value of another kind."""

from typing import Any

import pytest

from softspec.errors import DataError
from softspec.train.data.rows import LabelledRow, VotesRow, parse_row

TEXT = {"prompt": "a", "completion": "b"}


@pytest.mark.parametrize(
    ("value", "name"),
    [
        ("A", "A"),
        (7, "7"),
        (7.0, "7"),
        (0.5, "0.5"),
        (-0.0, "0"),
        ("7.0", "7.0"),
        (" A", " A"),
        (None, None),
        (0, "0"),
    ],
)
def test_a_name_is_text_or_a_number_as_text(value: Any, name: str | None) -> None:
    row = parse_row({**TEXT, "source": value, "group": value}, LabelledRow, "row")

    assert row.source == row.group == name


@pytest.mark.parametrize("value", [True, False, float("nan"), float("inf"), [1], {"a": 1}, "", "  ", b"A"])
@pytest.mark.parametrize("key", ["source", "group"])
def test_what_is_no_name_is_refused(key: str, value: Any) -> None:
    with pytest.raises(DataError, match=f"^row: {key}: expected text"):
        parse_row({**TEXT, key: value}, LabelledRow, "row")


@pytest.mark.parametrize(("value", "weight"), [(2, 2.0), (0.5, 0.5), (None, 1.0), (1e9, 1e9), (1e-30, 1e-30)])
def test_a_weight_is_a_number(value: Any, weight: float) -> None:
    assert parse_row({**TEXT, "weight": value}, LabelledRow, "row").weight == weight


@pytest.mark.parametrize(
    "value", [True, "2", 0, -1, 1e-46, 1e39, 10**400, float("nan"), float("inf"), [2], {}]
)
def test_what_is_no_weight_is_refused(value: Any) -> None:
    """In float32, in which losses are added, 1e39 is infinite and 1e-46 is nothing."""
    with pytest.raises(DataError, match=r"^row: weight: expected a (finite )?number"):
        parse_row({**TEXT, "weight": value}, LabelledRow, "row")


@pytest.mark.parametrize("value", [True, "3", -1, 1e10, 10**400, float("nan"), float("inf"), [3]])
def test_what_is_no_number_of_votes_is_refused(value: Any) -> None:
    with pytest.raises(DataError, match=r"^row: votes\.yes: expected a (finite )?number"):
        parse_row({"prompt": "a", "votes": {"no": 1, "yes": value}}, VotesRow, "row")


@pytest.mark.parametrize("votes", [{}, {"a": 0}, {"a": None}, {"a": 0, "b": 0.0}])
def test_no_votes_at_all_are_refused(votes: dict[str, Any]) -> None:
    with pytest.raises(DataError, match="expected at least one option in 'votes' with more than 0 votes"):
        parse_row({"prompt": "a", "votes": votes}, VotesRow, "row")


def test_an_option_without_a_number_has_no_votes_as_in_a_table() -> None:
    row = parse_row({"prompt": "a", "votes": {"yes": 3, "no": 1, "maybe": None}}, VotesRow, "row")

    assert [(option["completion"], option["weight"]) for option in row.rows()] == [
        ("yes", 0.75),
        ("no", 0.25),
    ]


def test_shares_of_votes_make_up_the_weight_however_large_both_are() -> None:
    votes = {str(option): 1e9 for option in range(10)}

    row = parse_row({"prompt": "a", "votes": votes, "weight": 1e9}, VotesRow, "row")

    assert sum(option["weight"] for option in row.rows()) == pytest.approx(1e9)
