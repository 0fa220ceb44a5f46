"""The probes of a real model against its own derivatives, and against data whose critical alpha is known."""

from typing import Any

import pytest
import torch
from torch import Tensor

from softspec.errors import ConfigError
from softspec.maths.stability import line_probe
from softspec.train.data.units import Unit
from softspec.train.diagnosis.probe import critical_alpha, probe
from softspec.train.diagnosis.replicas import Replicas, replicas_of
from softspec.train.loop.state import Training
from softspec.train.loop.step import optimizer_step
from tests.support.tiny_training import preference_rows, prepared, write_rows

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=["sft", "dpo"])
def training(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Training:
    """One adapter after some steps."""
    folder = tmp_path_factory.mktemp("probe")
    settings: dict[str, Any] = {"num_members": 1, "lora_r": 2}
    if request.param == "dpo":
        prepared(folder, **settings)
        write_rows(folder / "train.jsonl", preference_rows())
        settings |= {"objective": "dpo", "beta": 0.1, "learning_rate": 0.001}
    run = prepared(folder, **settings)
    for step in range(4):
        optimizer_step(run, step)
    return run


def random_direction(replicas: Replicas) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(replicas.point.shape, generator=generator) / len(replicas.point) ** 0.5


def units_of(training: Training, count: int = 6) -> list[Unit]:
    return [training.examples[number] for number in range(count)]


def test_scores_along_a_direction_are_the_gradients_in_it(training: Training) -> None:
    units = units_of(training)

    with replicas_of(training) as replicas:
        direction = random_direction(replicas)
        gradients = torch.stack([replicas.gradients([unit])[0] for unit in units])
        line = replicas.along(direction, units, 1e-2)

    torch.testing.assert_close(line.scores, (gradients @ direction).double(), rtol=2e-2, atol=2e-3)


def test_the_variance_of_scores_is_that_of_the_models_own_answers(training: Training) -> None:
    units = units_of(training, 1)

    with replicas_of(training) as replicas:
        direction = random_direction(replicas)
        variance = replicas.along(direction, units, 1e-2).curvatures.item()
        drawn = torch.stack([replicas.gradients(units)[1] @ direction for _ in range(60)])

    assert drawn.square().mean().item() == pytest.approx(variance, rel=0.5)


def test_replicas_in_the_training_code_feel_the_force_that_a_line_probe_predicts(training: Training) -> None:
    units, alpha, step = units_of(training), 0.8, 0.1

    with replicas_of(training) as replicas:
        direction = random_direction(replicas)
        replicas.stand_at(
            [replicas.point, replicas.point + step * direction, replicas.point - step * direction]
        )
        with torch.no_grad():
            centre, plus, minus = training.objective.batch(replicas.members, units).table().loglik
    with replicas_of(training, count=2) as replicas:
        force = replicas.force(units, alpha, direction, step)

    line = line_probe(centre, plus, minus, step)
    predicted = line.curvatures.mean() - alpha * line.scores.square().mean()
    assert (direction @ force).item() == pytest.approx(predicted.item(), rel=5e-2, abs=2e-3)


def test_a_run_is_as_it_was_after_a_probe(training: Training) -> None:
    units = units_of(training)
    with torch.no_grad():
        before = training.objective.batch(training.members, units).table().loglik

    probe(training)

    with torch.no_grad():
        assert torch.equal(before, training.objective.batch(training.members, units).table().loglik)


def test_tokens_that_are_routed_one_by_one_are_units(tmp_path_factory: pytest.TempPathFactory) -> None:
    run = prepared(tmp_path_factory.mktemp("token"), num_members=1, lora_r=2, granularity="token")
    optimizer_step(run, 0)

    found = critical_alpha(run, units_of(run))

    assert found.n == sum(len(unit.completions[0].completion_ids) for unit in units_of(run))


def test_too_few_rows_are_refused(training: Training) -> None:
    with pytest.raises(ConfigError, match="at least 4 units, found 3"):
        critical_alpha(training, units_of(training, 3))
