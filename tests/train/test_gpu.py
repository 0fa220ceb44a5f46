"""Training on a CUDA device: the CPU's gradients, bfloat16 bases with float32 adapters, and whole runs.

Left out unless asked for: `pytest -m gpu tests/train/test_gpu.py`.
"""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from softspec.artefact.manifest import load_manifest
from softspec.errors import TrainingError
from softspec.train.loop.passes import add_gradients
from softspec.train.loop.state import Training
from softspec.train.loop.step import optimizer_step
from softspec.train.run import train_ensemble
from tests.support.tiny import tiny_llama
from tests.support.tiny_training import (
    chat_rows,
    gradients_of,
    preference_rows,
    prepared,
    write_config,
    write_rows,
)
from tests.support.training_runs import logged_losses

pytestmark = pytest.mark.gpu

SETTINGS: dict[str, Any] = {
    "num_members": 3,
    "b_init_std": 0.3,
    "micro_batch_size": 5,
    "activation": {"kind": "block", "block_size": 8},
}


def gradients(training: Training, active_members: float) -> torch.Tensor:
    """The gradients of one step, flat, on the CPU."""
    training.optimizer.zero_grad()
    training.active_members = active_members
    add_gradients(training, training.examples, 0.3)
    return torch.cat([gradient.flatten().cpu() for gradient in gradients_of(training.members)])


def on_the_cpu(training: Training) -> Training:
    """The run moved to the CPU."""
    training.members.model.cpu()
    training.log_weights = training.log_weights.cpu()
    return training


@pytest.mark.parametrize("active_members", [3.0, 0.0], ids=["one pass", "two passes"])
@pytest.mark.parametrize("checkpointing", [False, True], ids=["", "checkpointing"])
def test_gradients_are_those_of_the_cpu(tmp_path: Path, active_members: float, checkpointing: bool) -> None:
    training = prepared(tmp_path, dtype="float32", gradient_checkpointing=checkpointing, **SETTINGS)
    assert training.members.model.device.type == "cuda"

    found = gradients(training, active_members)

    expected = gradients(on_the_cpu(training), active_members)
    assert (found - expected).norm() < 1e-4 * expected.norm()


def test_a_bfloat16_base_keeps_float32_adapters_and_nearly_their_gradients(tmp_path: Path) -> None:
    half = prepared(tmp_path, dtype="auto", **SETTINGS)
    full = prepared(tmp_path, dtype="float32", **SETTINGS)

    found, expected = gradients(half, 3.0), gradients(full, 3.0)

    assert half.members.model.dtype == torch.bfloat16
    assert {weight.dtype for weight in half.members.parameters()} == {torch.float32}
    assert torch.cosine_similarity(found, expected, dim=0) > 0.95


@pytest.mark.parametrize("objective", ["sft", "dpo"])
def test_a_whole_run_ends_in_an_ensemble_that_reloads(tmp_path: Path, objective: str) -> None:
    write_config(tmp_path)
    write_rows(tmp_path / "pairs.jsonl", preference_rows())
    data = {"sft": "train.jsonl", "dpo": "pairs.jsonl"}[objective]
    config = write_config(
        tmp_path, objective=objective, train_file=data, eval_file=data, max_steps=12, learning_rate=0.003
    )

    train_ensemble(config)

    losses = logged_losses(config)
    assert losses[-1] < 0.8 * losses[0]
    scores = load_manifest(config.output_dir).held_out
    assert scores["member_nll"] < (scores["base_nll"] if objective == "sft" else math.log(2))


def test_checkpointing_lowers_the_peak(tmp_path: Path) -> None:
    tiny_llama(tmp_path / "base", hidden=256, layers=6)
    write_rows(tmp_path / "train.jsonl", chat_rows())
    peaks = {}
    for checkpointing in (False, True):
        training = prepared(
            tmp_path, num_members=4, micro_batch_size=12, gradient_checkpointing=checkpointing, max_steps=2
        )
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        gradients(training, 4.0)
        peaks[checkpointing] = torch.cuda.max_memory_allocated() - before

    assert peaks[True] < 0.6 * peaks[False]


def test_a_lack_of_memory_is_told_in_one_line(tmp_path: Path) -> None:
    tiny_llama(tmp_path / "base", hidden=256, layers=6)
    write_rows(tmp_path / "train.jsonl", chat_rows())
    training = prepared(tmp_path, num_members=16, micro_batch_size=12)
    torch.cuda.empty_cache()
    room = torch.cuda.memory_reserved() / torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(room)
    try:
        with pytest.raises(TrainingError, match="step 1: out of memory; lower micro_batch_size"):
            optimizer_step(training, 0)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
