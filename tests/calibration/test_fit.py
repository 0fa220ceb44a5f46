"""A confidence is right on rows that it was not fitted to, and never rises with the doubt."""

from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression

from softspec.artefact.calibration import Calibration, Method, Target, read_curve
from softspec.calibration.crossfit import out_of_fold, share_interval
from softspec.calibration.curves import fit_curve
from softspec.calibration.fit import Fitted, Wanted, fit_calibration
from softspec.calibration.model import fit_confidence
from softspec.calibration.outcomes import Outcomes
from softspec.calibration.table import table
from softspec.errors import DataError

METHODS: list[Method] = ["isotonic", "platt", "beta"]
HOW: dict[str, Any] = {
    "judged": "decisions", "weights_rule": "prefix_posterior", "min_tokens": 1, "settings": {},
}  # fmt: skip


def outcomes(
    rows: int = 600, seed: int = 0, metrics: tuple[str, ...] = ("epistemic",), groups: bool = False
) -> Outcomes:
    """Rows whose log-odds of being right are 4.5 - 4 times the first metric; the raw confidence is too high."""
    draw = np.random.default_rng(seed)
    whole = draw.exponential(0.5, size=(rows, len(metrics)))
    doubt = whole[:, 0] + (whole[:, 1] if len(metrics) > 1 else 0)
    truth = 1 / (1 + np.exp(-(4.5 - 4 * doubt)))
    names = [("law", "tax")[place % 2] if groups else None for place in range(rows)]
    return Outcomes(
        metrics=metrics,
        whole=whole,
        prefixes=[row[None] for row in whole],
        correct=draw.random(rows) < truth,
        raw=truth ** (1 / 4),
        groups=names,
    )


def fitted(rows: Outcomes, **wanted: Any) -> Fitted:
    return fit_calibration(rows, Wanted(**wanted), **HOW)


@pytest.mark.parametrize("method", METHODS)
def test_curve_never_rises_and_keeps_away_from_certainty(method: Method) -> None:
    rows = outcomes()

    curve = fit_curve(rows.whole[:, 0], rows.correct, method, "nats")

    assert all(a[0] < b[0] and a[1] >= b[1] for a, b in pairwise(curve))
    assert all(1 / 602 <= height <= 601 / 602 for _, height in curve)


def test_isotonic_curve_is_scikit_learns_with_ties() -> None:
    draw = np.random.default_rng(1)
    scores = draw.integers(0, 6, 400) / 4
    correct = draw.random(400) < 0.9 - 0.5 * scores

    curve = fit_curve(scores, correct, "isotonic", "nats")

    model = IsotonicRegression(increasing=False, out_of_bounds="clip").fit(scores, correct)
    asked = np.linspace(-1, 3, 81)
    expected = np.clip(model.predict(asked), 1 / 402, 401 / 402)
    assert [read_curve(curve, score) for score in asked] == pytest.approx(list(expected), abs=1e-6)


def test_platts_curve_is_scikit_learns_sigmoid() -> None:
    rows = outcomes()
    scores = rows.whole[:, 0]

    curve = fit_curve(scores, rows.correct, "platt", "nats")

    model = LogisticRegression(C=np.inf).fit(scores[:, None], rows.correct)
    expected = np.clip(model.predict_proba(scores[:, None])[:, 1], 1 / 602, 601 / 602)
    assert [read_curve(curve, score) for score in scores] == pytest.approx(list(expected), abs=2e-3)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("scores", [np.zeros(100), np.arange(100.0)], ids=["constant", "upside down"])
def test_metric_that_tells_nothing_gives_the_share_of_right_answers(method: Method, scores: Any) -> None:
    correct = np.arange(100) >= 30

    curve = fit_curve(scores, correct, method, "nats")

    assert [height for _, height in curve] == pytest.approx([0.7] * len(curve), abs=1e-6)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("metrics", [("epistemic", "total_entropy")], ids=["two metrics"])
def test_confidence_is_better_than_the_mixtures_own_on_held_out_rows(
    method: Method, metrics: tuple[str, ...]
) -> None:
    told = fitted(outcomes(metrics=metrics), method=method).calibration.fit

    for score in ("ece", "brier", "nll"):
        assert told[score]["after"]["value"] < told[score]["before"]["value"]
        assert told[score]["after"]["low"] <= told[score]["after"]["value"] <= told[score]["after"]["high"]
    assert sum(each["n"] for each in told["reliability"]) == 600


def test_cross_fitted_confidence_does_not_know_its_own_row() -> None:
    """Where there is nothing to learn, a curve through its own rows looks informed; one of the other folds does not."""
    draw = np.random.default_rng(2)
    noise = draw.random(200)
    rows = Outcomes(
        ("epistemic",), noise[:, None], [row[None] for row in noise[:, None]],
        draw.random(200) < 0.5, np.full(200, 0.5), [None] * 200,
    )  # fmt: skip

    held_out = out_of_fold(rows, "isotonic")
    own = [read_curve(fit_curve(noise, rows.correct, "isotonic", "nats"), score) for score in noise]

    assert held_out is not None
    assert np.mean((np.array(own) - rows.correct) ** 2) < 0.25 < np.mean((held_out - rows.correct) ** 2)


def test_calibration_is_what_the_manifest_reads() -> None:
    rows = outcomes(metrics=("epistemic", "total_entropy"))
    found = fitted(rows, target_errors=(0.1,), target_coverages=(0.7,)).calibration

    assert Calibration.model_validate_json(found.model_dump_json()) == found
    metrics = dict(zip(rows.metrics, rows.whole[0], strict=True))
    assert 0 < found.confidence(metrics) < 1
    assert found.reference is not None
    assert found.reference.shares[-1] == 1


@pytest.mark.parametrize("metrics", [("epistemic",), ("epistemic", "total_entropy")], ids=["one", "two"])
@pytest.mark.parametrize("method", METHODS)
def test_confidences_of_all_rows_are_those_that_the_server_reads(
    method: Method, metrics: tuple[str, ...]
) -> None:
    rows = outcomes(rows=200, metrics=metrics)
    every = np.ones(200, bool)

    model = fit_confidence(rows, every, method)

    read = Calibration(
        judged="decisions", metric="confidence" if model.inputs else "epistemic", method=method,
        curve=model.curve, inputs=model.inputs,
    )  # fmt: skip
    beyond = np.vstack([rows.whole, np.full(len(metrics), 99.0), np.full(len(metrics), -1.0)])
    assert model.of(beyond).tolist() == [
        read.confidence(dict(zip(metrics, row, strict=True))) for row in beyond.tolist()
    ]


def test_doubt_of_a_row_is_that_of_its_worst_prefix() -> None:
    rows = outcomes(rows=60)
    prefixes = [np.array([[0.2], [0.7], [0.1]]), np.empty((0, 1)), np.array([[0.4]]), *rows.prefixes[3:]]

    doubts = fit_confidence(rows, np.ones(60, bool), "platt").doubts(replace(rows, prefixes=prefixes))

    assert doubts[:3].tolist() == [0.7, -np.inf, 0.4]
    assert doubts[3:].tolist() == rows.whole[3:, 0].tolist()


def test_threshold_of_several_metrics_is_a_confidence_that_answers_what_was_certified() -> None:
    rows = outcomes(rows=2000, metrics=("epistemic", "total_entropy"))

    found = fitted(rows, target_errors=(0.1,)).calibration
    threshold = found.threshold_for(Target(target_error=0.1))

    fresh = outcomes(rows=4000, seed=9, metrics=rows.metrics)
    confidences = np.array(
        [found.confidence(dict(zip(rows.metrics, row, strict=True))) for row in fresh.whole]
    )
    answered = confidences >= threshold.threshold
    assert found.metric == "confidence"
    assert threshold.num_rows == 1000
    assert (~fresh.correct[answered]).mean() <= 0.1
    assert answered.mean() == pytest.approx(threshold.coverage, abs=0.06)


def test_groups_have_thresholds_of_their_own_and_are_told_under_the_common_one() -> None:
    found = fitted(outcomes(rows=2000, groups=True), target_errors=(0.1,))

    assert {each.group for each in found.calibration.thresholds} == {None, "law", "tax"}
    assert [row["group"] for row in found.by_group] == ["law", "tax"]
    assert sum(row["n"] for row in found.by_group) == 2000
    assert all(
        0 < row["error_interval"][0] < row["error"] < row["error_interval"][1] for row in found.by_group
    )


def test_target_that_cannot_be_met_is_told_and_not_written() -> None:
    found = fitted(outcomes(rows=60), target_errors=(0.01,), target_coverages=(0.99,))

    assert found.calibration.thresholds == ()
    assert [str(each.target) for each in found.unmet] == [
        '{"target_error": 0.01}',
        '{"target_coverage": 0.99}',
    ]
    assert found.unmet[1].rows_needed == 230
    assert "60 rows are too few; about 170 more rows would be needed" in table(found)


@pytest.mark.parametrize(
    ("rows", "correct", "complaint"),
    [(49, None, "found 49 rows"), (80, True, "all 80 answers are right"), (80, False, "are wrong")],
)
def test_rows_of_which_nothing_can_be_said_are_refused(
    rows: int, correct: bool | None, complaint: str
) -> None:
    found = outcomes(rows=rows)
    if correct is not None:
        found.correct[:] = correct

    with pytest.raises(DataError, match=complaint):
        fitted(found)


def test_interval_of_a_share_is_clopper_and_pearsons() -> None:
    assert share_interval(0, 20) == pytest.approx((0.0, 0.1684335), abs=1e-6)
    assert share_interval(20, 20) == pytest.approx((0.8315665, 1.0), abs=1e-6)
    assert share_interval(8, 10) == pytest.approx((0.4439045, 0.9747893), abs=1e-6)
