"""Rates of growth from spreads whose rate is known, and from the log of a run."""

import json
import math
import random
from pathlib import Path

import pytest

from softspec.maths.stability import Estimate
from softspec.train.diagnosis.growth import growth, logged_growth, rate_of


def test_the_rate_of_an_exponential_is_found() -> None:
    found = growth(2, [(step, 1e-6 * math.exp(0.1 * step)) for step in range(1, 41)])

    assert found.rate
    assert found.rate.value == pytest.approx(0.1)
    assert found.steps_to_go == math.ceil(math.log(0.5 * math.log(2) / (1e-6 * math.exp(4))) / 0.1)


def test_intervals_of_rates_hold_the_truth_as_often_as_they_say() -> None:
    rng, held = random.Random(0), 0
    for _ in range(400):
        points = [(step, 1e-4 * math.exp(0.02 * step + rng.gauss(0, 0.2))) for step in range(4, 65, 4)]
        rate = rate_of(points)
        assert rate
        held += rate.low <= 0.02 <= rate.high

    assert 0.91 <= held / 400 <= 0.99


def test_what_grows_alike_without_routing_is_no_growth() -> None:
    """Adapters with other starts drift apart at first, whatever the order is."""
    points = [(step, 1e-4 * step**2) for step in range(1, 41)]

    assert growth(4, points).grows
    assert not growth(4, points, rate_of(points)).grows
    assert growth(4, points, Estimate(0.01, 0, 0.02, 8)).grows


def test_few_points_have_no_rate() -> None:
    found = growth(4, [(step, 0.1) for step in range(1, 6)])

    assert found.rate is None
    assert found.steps_to_go is None


def test_members_that_are_apart_need_no_steps() -> None:
    assert growth(4, [(step, 1.2) for step in range(1, 41)]).steps_to_go == 0


def test_a_runs_log_tells_its_growth(tmp_path: Path) -> None:
    events = [{"step": step, "routing_perplexity": 4 * math.exp(-1e-4 * 1.1**step)} for step in range(1, 41)]
    lines = [json.dumps(event) for event in [*events, {"held_out": {}}]]
    (tmp_path / "training.jsonl").write_text("\n".join(lines) + "\n")

    found = logged_growth(tmp_path, 4)

    assert found.rate
    assert found.rate.value == pytest.approx(math.log(1.1), rel=1e-4)
    assert logged_growth(tmp_path / "nothing", 4).spreads == ()
