"""Running out of memory: one piece of advice, wherever it happens."""

from pathlib import Path

import pytest
import torch

from softspec.errors import TrainingError
from softspec.train.loop.memory import advice_on_memory
from softspec.train.run import held_out_scores
from tests.support.tiny_training import config_of_no_files, prepared

ADVICE = r"out of memory; lower micro_batch_size, which is 2 \(and raise gradient_accumulation_steps as much\), or max"


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
    ids=str,
)
def test_every_way_of_running_out_of_memory_gives_the_advice(error: Exception) -> None:
    with (
        pytest.raises(TrainingError, match="reading: " + ADVICE),
        advice_on_memory(config_of_no_files(), "reading"),
    ):
        raise error


def test_a_tensor_that_no_machine_holds_gives_the_advice() -> None:
    """The words of this torch, not those we remember."""
    with pytest.raises(TrainingError, match="^" + ADVICE), advice_on_memory(config_of_no_files()):
        torch.empty(2**55)


def test_other_errors_pass() -> None:
    with pytest.raises(RuntimeError, match="shapes"), advice_on_memory(config_of_no_files(), "reading"):
        raise RuntimeError("shapes differ")


def test_an_evaluation_gives_the_advice_too(tmp_path: Path) -> None:
    training = prepared(tmp_path, micro_batch_size=2, eval_file="train.jsonl")

    def run_out(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    training.members.model.get_decoder().register_forward_pre_hook(run_out)

    with pytest.raises(TrainingError, match="evaluation: " + ADVICE):
        held_out_scores(training)
