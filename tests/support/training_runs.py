"""Training runs that are watched, stopped and read afterwards: what their log says, and what their adapters are."""

import itertools
import json
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import softspec.train.run
from softspec.artefact.manifest import load_manifest, member_dir
from softspec.errors import Interrupted
from softspec.train.config import TrainConfig
from softspec.train.loop.checkpoint import LOG_NAME
from softspec.train.loop.facts import StepFacts
from softspec.train.loop.step import optimizer_step
from softspec.train.run import train_ensemble
from tests.support.tiny_training import write_config

STEPS = 40
"""Of a run that is interrupted."""


def adapters(directory: Path) -> dict[str, Tensor]:
    """All weights of both members of an ensemble."""
    files = [member_dir(directory, member) / "adapter_model.safetensors" for member in range(2)]
    return {
        f"{file.parent.name} {name}": weight for file in files for name, weight in load_file(file).items()
    }


def assert_same_adapters(one: TrainConfig, other: TrainConfig) -> None:
    """The runs ended with the same weights, bit for bit."""
    expected, found = adapters(one.output_dir), adapters(other.output_dir)
    assert expected.keys() == found.keys()
    assert all(torch.equal(weight, found[name]) for name, weight in expected.items())


def assert_close_adapters(one: TrainConfig, other: TrainConfig) -> None:
    """The runs ended with the same weights, but for the order in which floating-point numbers were added."""
    expected, found = adapters(one.output_dir), adapters(other.output_dir)
    assert expected.keys() == found.keys()
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, atol=2e-5, rtol=1e-3)


def assert_ended_alike(one: TrainConfig, other: TrainConfig) -> None:
    """The runs ended with the same weights, held-out scores and losses, but for the order of additions."""
    assert_close_adapters(one, other)
    expected, found = (load_manifest(run.output_dir).held_out for run in (one, other))
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=1e-4), name
    assert logged_losses(other) == pytest.approx(logged_losses(one), rel=1e-5)


def logged(config: TrainConfig) -> list[dict[str, Any]]:
    """The events of a finished run, without the time they took."""
    lines = (config.output_dir / LOG_NAME).read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key != "seconds"} for line in lines]


def logged_losses(config: TrainConfig) -> list[float]:
    """The loss of each logged step of a finished run, in order."""
    return [event["loss"] for event in logged(config) if "loss" in event]


class Killed(Exception):
    """As if the process had ended here."""


def dying_at(call: int, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, which does not return from that call."""
    calls = itertools.count(1)

    def dying(*arguments: Any) -> Any:
        if next(calls) == call:
            raise Killed
        return function(*arguments)

    return dying


@contextmanager
def signal_in_step(step: int, number: int) -> Iterator[None]:
    """This process gets the signal while that step is running."""
    steps = itertools.count(1)

    def step_with_signal(*arguments: Any) -> StepFacts:
        if next(steps) == step:
            os.kill(os.getpid(), number)
        return optimizer_step(*arguments)

    with patch.object(softspec.train.run, "optimizer_step", step_with_signal):
        yield


def interrupted(folder: Path, number: int = signal.SIGTERM, **settings: Any) -> TrainConfig:
    """A run that a signal stopped early."""
    config = write_config(folder, max_steps=STEPS, **settings)
    with signal_in_step(3, number), pytest.raises(Interrupted) as stop:
        train_ensemble(config)
    assert stop.value.exit_code == 128 + number
    return config
