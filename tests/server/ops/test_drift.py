"""Drift is the Kolmogorov-Smirnov distance of the served confidences from those of the calibration."""

import random

import pytest
from prometheus_client import CollectorRegistry
from scipy.stats import ks_2samp

from softspec.artefact.calibration import Reference
from softspec.server.ops.drift import FEWEST, WINDOW, Drift, Drifts
from softspec.server.ops.metrics import Metrics
from softspec.server.policy.policy import ANSWER
from tests.support.calibrations import ANSWERS

LEVELS = (0.2, 0.5, 0.8)
REFERENCE = Reference(values=LEVELS, shares=(0.1, 0.4, 1.0))
CALIBRATION_TIME = [0.2] * 10 + [0.5] * 30 + [0.8] * 60


def drift_of(confidences: list[float]) -> float | None:
    drift = Drift(REFERENCE)
    return [drift.add(each) for each in confidences][-1]


def test_distance_is_scipys_of_the_last_confidences() -> None:
    draw = random.Random(0)
    served = draw.choices(LEVELS, (1, 1, 1), k=WINDOW + 300)

    assert drift_of(served) == pytest.approx(ks_2samp(served[-WINDOW:], CALIBRATION_TIME).statistic)


def test_confidences_as_at_calibration_have_not_drifted() -> None:
    assert drift_of(CALIBRATION_TIME) == pytest.approx(0)


def test_confidences_beyond_all_of_calibration_are_as_far_as_can_be() -> None:
    assert drift_of([0.05] * FEWEST) == pytest.approx(0.9)
    assert drift_of([0.1] * FEWEST) == drift_of([0.2] * FEWEST)
    assert drift_of([0.9] * FEWEST) == 1


def test_too_few_tell_nothing() -> None:
    assert drift_of([0.5] * (FEWEST - 1)) is None


def test_another_calibration_begins_anew() -> None:
    drifts = Drifts()
    for _ in range(FEWEST):
        told = drifts.add("my", ANSWERS, 0.5)

    assert told is not None
    assert drifts.add("my", ANSWERS.model_copy(update={"num_rows": 5}), 0.5) is None
    assert drifts.add("my", ANSWERS.model_copy(update={"reference": None}), 0.5) is None


def test_drift_is_shown_once_it_is_known() -> None:
    registry = CollectorRegistry()
    metrics = Metrics(registry)

    for _ in range(FEWEST):
        metrics.decided("my", ANSWER, ANSWERS, 0.5)

    labels = {"model": "my", "judged": "answers"}
    assert registry.get_sample_value("softspec_confidence_drift_ratio", labels) == pytest.approx(0.6)
    assert registry.get_sample_value("softspec_confidence_ratio_count", labels) == FEWEST
