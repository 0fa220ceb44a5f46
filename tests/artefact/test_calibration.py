"""A confidence and a threshold are read off a calibration as it says, whatever the metric."""

import json
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from softspec.artefact.calibration import Calibration, Target, read_curve
from softspec.artefact.manifest import Manifest
from softspec.errors import ConfigError

CURVE = [(0.1, 0.9), (0.3, 0.7), (0.5, 0.7), (1.0, 0.2)]
FIVE = {
    "target_error": 0.05,
    "threshold": 0.2,
    "delta": 0.1,
    "coverage": 0.5,
    "error": 0.01,
    "num_rows": 90,
}


def calibration(**changes: Any) -> Calibration:
    said = {"judged": "answers", "metric": "max_epistemic", "method": "isotonic", "curve": CURVE}
    return Calibration.model_validate({**said, **changes})


def confidence(value: float) -> float:
    return calibration().confidence({"max_epistemic": value})


def test_confidence_lies_on_the_lines_between_the_points_of_the_curve() -> None:
    assert confidence(0.1) == 0.9
    assert confidence(0.2) == pytest.approx(0.8)
    assert confidence(0.4) == pytest.approx(0.7)
    assert confidence(0.75) == pytest.approx(0.45)


def test_outside_of_the_curve_its_ends_hold() -> None:
    assert [confidence(value) for value in (-math.inf, 0.0, 1.0, 9.0, math.inf)] == [0.9, 0.9, 0.2, 0.2, 0.2]


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.floats(-1e300, 1e300), min_size=1, max_size=6, unique=True),
    st.data(),
)
def test_any_curve_gives_probabilities_that_never_rise(scores: list[float], data: st.DataObject) -> None:
    heights = data.draw(st.lists(st.floats(0, 1), min_size=len(scores), max_size=len(scores)))
    curve = list(zip(sorted(scores), sorted(heights, reverse=True), strict=True))
    asked = sorted([*scores, -math.inf, math.inf, data.draw(st.floats(allow_nan=False))])

    read = [read_curve(curve, score) for score in asked]

    assert all(0 <= each <= 1 for each in read)
    assert all(a >= b - 1e-12 for a, b in pairwise(read))


def test_several_metrics_make_one_score_that_stays_finite() -> None:
    inputs = [
        {"metric": "epistemic", "weight": 2.0, "low": 0.0, "high": 0.4},
        {"metric": "disagreement", "weight": -1.0, "low": 0.0, "high": 1.0},
    ]
    several = calibration(metric="confidence", inputs=inputs)

    assert several.score({"epistemic": 0.3, "disagreement": 0.1}) == pytest.approx(0.5)
    assert several.score({"epistemic": math.inf, "disagreement": math.inf}) == pytest.approx(-0.2)
    assert several.metrics == ("epistemic", "disagreement")


def test_threshold_is_that_of_the_target_and_of_its_group() -> None:
    of_law = {**FIVE, "group": "law", "threshold": 0.1}
    found = calibration(thresholds=[FIVE, of_law])

    assert found.threshold_for(Target(target_error=0.05)).threshold == 0.2
    assert found.threshold_for(Target(target_error=0.05, group="law")).threshold == 0.1


def test_target_that_was_not_certified_is_refused_with_those_that_were() -> None:
    with pytest.raises(ConfigError) as error:
        calibration(thresholds=[FIVE]).threshold_for(Target(target_error=0.01))

    assert str(error.value) == (
        'no threshold was certified for {"target_error": 0.01}: expected one of {"target_error": 0.05}'
    )


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"metric": "max_epistemi"}, "of answers expected one of mutual_information"),
        ({"judged": "decisions"}, "of decisions expected one of epistemic"),
        ({"metric": "confidence"}, "metric is 'confidence'"),
        ({"curve": [(0, 0.5), (1, 0.6)]}, "confidences that never rise"),
        ({"curve": [(1, 0.5), (1, 0.4)]}, "rising scores"),
        ({"curve": [(0, 1.5)]}, "less than or equal to 1"),
        ({"curve": []}, "at least 1"),
        ({"thresholds": [{**FIVE, "target_coverage": 0.5}]}, "expected either"),
        ({"thresholds": [{**FIVE, "threshold": math.nan}]}, "finite number"),
        ({"weight": 1}, "not permitted"),
        ({"also": calibration().model_dump()}, "of the other kind"),
    ],
)
def test_calibration_that_cannot_be_followed_is_refused(changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValidationError, match=complaint):
        calibration(**changes)


def test_each_kind_is_found_where_both_are_there() -> None:
    decisions = calibration(judged="decisions", metric="epistemic")
    both = calibration(also=decisions)

    assert (both.of("answers"), both.of("decisions")) == (both, decisions)
    assert calibration().of("decisions") is None


def manifest(**changes: Any) -> Manifest:
    said = {
        "name": "my", "base_model": {"path": "base"}, "num_members": 1, "log_weights": [0.0],
        "renyi_alpha": 0.8, "calibration": calibration().model_dump(),
    }  # fmt: skip
    return Manifest.model_validate_json(json.dumps({**said, **changes}))


def test_manifest_carries_it_and_comes_back_the_same(tmp_path: Path) -> None:
    found = manifest()

    assert found.calibration == calibration()
    assert Manifest.model_validate_json(found.model_dump_json()) == found


def test_manifest_without_one_stays_loadable() -> None:
    assert manifest(calibration=None).calibration is None


def test_calibration_of_another_mixture_is_refused() -> None:
    with pytest.raises(ValidationError, match="made with weights_rule 'prefix_posterior'"):
        manifest(weights_rule="fixed")
