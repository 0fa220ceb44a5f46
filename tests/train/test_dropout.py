"""LoRA dropout, of one member: noise that a resumed run and a recomputed layer draw again, and scores never see."""

import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from softspec.artefact.manifest import member_dir
from softspec.errors import ConfigError
from softspec.train.config import TrainConfig
from softspec.train.members.likelihood import collate, member_loglik
from softspec.train.run import train_ensemble
from tests.support.tiny_training import examples_of, prepared, write_config
from tests.support.training_runs import STEPS, interrupted

DROPPING = {"num_members": 1, "lora_dropout": 0.3}


def largest_gap(one: TrainConfig, other: TrainConfig) -> float:
    """Between the weights of the one member of two ensembles."""
    first, second = (
        load_file(member_dir(config.output_dir, 0) / "adapter_model.safetensors") for config in (one, other)
    )
    return max((first[name] - second[name]).abs().max().item() for name in first)


@pytest.mark.slow
def test_a_resumed_run_draws_the_noise_that_it_would_have_drawn(tmp_path: Path) -> None:
    whole = write_config(tmp_path, output_dir="whole", max_steps=STEPS, **DROPPING)
    train_ensemble(whole)

    stopped = interrupted(tmp_path, signal.SIGTERM, output_dir="stopped", **DROPPING)
    train_ensemble(stopped, resume=True)

    assert largest_gap(stopped, whole) == 0


def test_a_layer_that_is_computed_again_has_the_noise_that_it_had(tmp_path: Path) -> None:
    kept, recomputed = (
        write_config(tmp_path, output_dir=name, gradient_checkpointing=again, **DROPPING)
        for name, again in (("kept", False), ("recomputed", True))
    )
    quiet = write_config(tmp_path, output_dir="quiet", num_members=1)

    for config in (kept, recomputed, quiet):
        train_ensemble(config)

    assert largest_gap(recomputed, kept) < 1e-5
    assert largest_gap(quiet, kept) > 1e-3


def test_scores_have_no_dropout(tmp_path: Path) -> None:
    training = prepared(tmp_path, num_members=1, lora_dropout=0.5)
    batch = collate(examples_of(training)[:3], training.config.activation, torch.device("cpu"))
    with torch.no_grad():
        for linear in training.members.linears.values():
            linear.lora_b.normal_()

    with torch.no_grad():
        first, second = (member_loglik(training.members, batch) for _ in range(2))
    noisy = member_loglik(training.members, batch)

    assert torch.equal(first, second)
    assert not torch.allclose(noisy, first)


def test_several_members_have_no_dropout(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="lora_dropout is for one member"):
        write_config(tmp_path, lora_dropout=0.1)
