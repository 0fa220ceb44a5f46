"""A metric of a growing answer is the summary's, to the last digit."""

import math
import random

import pytest

from softspec.artefact.manifest import WeightsRule
from softspec.maths.answer import METRICS, summarise
from softspec.maths.running import ExactSum, RunningMetric
from tests.support.random_tokens import PRIOR, random_tokens


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("rule", ["prefix_posterior", "fixed"])
def test_running_metric_equals_the_summary_of_every_prefix(metric: str, rule: WeightsRule) -> None:
    tokens = random_tokens(seed=3, count=9)
    running = RunningMetric(metric, PRIOR, rule)

    values = [running.add(token) for token in tokens]

    expected = [getattr(summarise(tokens[:end], PRIOR, rule), metric) for end in range(1, len(tokens) + 1)]
    assert values == expected


def test_sum_is_that_of_the_standard_library_at_any_size_of_numbers() -> None:
    draw = random.Random(11)
    for _ in range(200):
        numbers = [draw.uniform(-1, 1) * 10 ** draw.randint(-20, 20) for _ in range(30)]
        total = ExactSum()

        assert [total.add(number) for number in numbers] == [math.fsum(numbers[:end]) for end in range(1, 31)]


def test_sum_with_an_impossible_token_stays_minus_infinity() -> None:
    total = ExactSum()

    assert [total.add(number) for number in (-1.0, -math.inf, -2.0)] == [-1.0, -math.inf, -math.inf]
