"""Temperature scaling: a known temperature is found, and no row has a say in its own."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.special import log_softmax
from sklearn.linear_model import LogisticRegression

from softspec.app.baselines.temperature import per_token, scaled, shares, temperature_of
from softspec.evaluation.records import Header, Record


def records(temperature: float, rows: int = 2000, seed: int = 0) -> list[Record]:
    """Rows of 2 to 4 choices whose answers are drawn from what the model says at this temperature."""
    generator = np.random.default_rng(seed)
    found = []
    for row in range(rows):
        log_probs = log_softmax(generator.normal(scale=3, size=2 + row % 3)) - generator.exponential()
        answer = generator.choice(len(log_probs), p=np.exp(log_softmax(log_probs / temperature)))
        found.append(record_of(row, tuple(log_probs.tolist()), int(answer)))
    return found


def record_of(row: int, log_probs: tuple[float, ...], answer: int | None) -> Record:
    return Record(
        row=row,
        form="choices",
        item=f"item {row}",
        choices=tuple("abcd"[: len(log_probs)]),
        log_probs=log_probs,
        member_log_probs=(log_probs,),
        num_tokens=(2,) * len(log_probs),
        answer=answer,
    )


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
def test_the_temperature_that_made_the_answers_is_found(temperature: float) -> None:
    assert temperature_of(records(temperature)) == pytest.approx(temperature, rel=0.08)


def test_choices_that_are_compared_by_token_are_scaled_by_token() -> None:
    """All of two tokens: half the log-probability, so half the temperature; and nothing is left to be divided by."""
    header = Header.model_construct(log_weights=(0.0,), weights_rule="prefix_posterior")

    rows = per_token(header, records(1.8))

    assert temperature_of(rows) == pytest.approx(0.9, rel=0.08)
    assert {count for row in rows for count in row.num_tokens} == {1}


def test_two_choices_are_a_logistic_regression() -> None:
    """Against scikit-learn: the inverse temperature is its one weight, of the difference of log-probabilities."""
    rows = [record for record in records(1.7, rows=900) if len(record.choices) == 2]
    differences = [[record.log_probs[1] - record.log_probs[0]] for record in rows]
    fitted = LogisticRegression(C=np.inf, fit_intercept=False, tol=1e-8)
    fitted.fit(differences, [record.answer for record in rows])

    assert 1 / temperature_of(rows) == pytest.approx(fitted.coef_[0, 0], rel=1e-4)


def test_no_row_moves_its_own_temperature() -> None:
    """Rows that ask the same count as one; all else stays when one row's answer is another."""
    rows = records(1.5, rows=60)
    rows[3] = replace(rows[3], item=rows[2].item)
    changed = [*rows[:2], replace(rows[2], answer=1 - rows[2].answer if rows[2].answer else 1), *rows[3:]]

    before, after = scaled(rows), scaled(changed)

    assert not isinstance(before, str)
    assert not isinstance(after, str)
    same = [one.log_probs == two.log_probs for one, two in zip(before[0], after[0], strict=True)]
    assert same[2]
    assert same[3]
    assert not all(same)
    assert len(set(before[1].temperatures)) > 1


def test_scaled_rows_are_one_predictive_over_their_choices() -> None:
    rows = records(2.0, rows=50)
    several = [replace(row, member_log_probs=(row.log_probs, row.log_probs)) for row in rows]

    found = scaled(several)

    assert not isinstance(found, str)
    for before, after in zip(rows, found[0], strict=True):
        assert after.member_log_probs == (after.log_probs,)
        assert np.exp(after.log_probs).sum() == pytest.approx(1)
        assert np.argmax(after.log_probs) == np.argmax(before.log_probs)


def test_votes_and_ratings_share_the_truth_and_weights_count_rows() -> None:
    row = record_of(0, (-0.1, -3.0), None)
    voted, rated = replace(row, votes=(3.0, 1.0)), replace(row, ratings={"x": (0,), "y": (0, 1)})

    assert shares(row) is None
    assert shares(voted) == (0.75, 0.25)
    assert shares(rated) == (0.75, 0.25)
    twice = [replace(voted, weight=2.0), replace(row, answer=1)]
    assert temperature_of(twice) == pytest.approx(temperature_of([voted, voted, replace(row, answer=1)]))


def test_rows_that_are_all_right_end_at_a_small_temperature_and_few_rows_say_why_not() -> None:
    sure = [record_of(row, (-0.1, -3.0), 0) for row in range(4)]

    assert temperature_of(sure) < 0.05
    assert scaled(sure[:1]) == "needs labelled choices of 2 different prompts at least, found 1"
    assert scaled([replace(row, answer=None) for row in sure]) == (
        "needs labelled choices of 2 different prompts at least, found 0"
    )
