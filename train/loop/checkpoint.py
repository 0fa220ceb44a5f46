"""A run's state on disk, from which it goes on to the same numbers, and its log.

In: the state after a step. Out: the same state later. Knows nothing of the objective. The data order and the learning
rate follow from the step number, so they need no state.
"""

import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from softspec.errors import ConfigError, StorageError
from softspec.train.config import TrainConfig
from softspec.train.loop.folder import LOG_NAME as LOG_NAME
from softspec.train.loop.folder import RunFolder
from softspec.train.loop.folder import open_run as open_run

FREE_TO_CHANGE = {
    "base_model",
    "model_revision",
    "output_dir",
    "name",
    "eval_file",
    "eval_steps",
    "save_steps",
    "logging_steps",
    "train_file",
    "dataset_config",
    "dataset_train_split",
    "dataset_test_split",
    "report_to",
    "frozen_cache_gb",
    "shard_base",
}
"""Settings that a resumed run may change: they do not touch the numbers, as what they lead to has its own digest."""
EVALUATION = {"eval_steps"}
"""These decide, after all, when early stopping ends a run."""


def save_checkpoint(
    run: RunFolder, step: int, state: Mapping[str, object], config: TrainConfig, digest: str
) -> None:
    """Store everything that later steps depend on; whatever fails while writing leaves the older checkpoint.

    Raises:
        StorageError: there is no room, or the disk fails.
    """
    content = {"step": step, "state": state, "config": _binding(config), "examples": digest}
    temporary = run.checkpoint.with_suffix(".new")
    try:
        with temporary.open("wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())  # or a machine that dies may have renamed the file without its data
        os.replace(temporary, run.checkpoint)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink()
        if isinstance(error, RuntimeError) or (isinstance(error, OSError) and error.errno):
            raise _cannot_save(run, step, state, error) from error
        raise


def _cannot_save(run: RunFolder, step: int, state: Mapping[str, object], error: Exception) -> StorageError:
    """The error of a checkpoint that could not be written: how much room it needs, and which one there is."""
    needed, free = _size(state), shutil.disk_usage(run.path).free
    reason = f"it needs {needed / 1e6:.1f} MB and {free / 1e6:.1f} MB are free"
    if isinstance(error, OSError) and error.strerror:
        reason = f"{error.strerror}; {reason}"
    kept = "no earlier one"
    if run.checkpoint.exists():
        kept = f"that of step {_step_of(run.checkpoint)}, from which --resume goes on"
    return StorageError(
        f"cannot write a checkpoint of step {step} to '{run.path}': {reason}; there is {kept}"
    )


def _size(value: object) -> int:
    """The bytes of all tensors in nested containers."""
    if isinstance(value, Tensor):
        return value.nbytes
    if isinstance(value, Mapping):
        return sum(_size(inner) for inner in value.values())
    return sum(_size(inner) for inner in value) if isinstance(value, list | tuple) else 0


def _step_of(checkpoint: Path) -> object:
    with suppress(Exception):
        return torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)["step"]
    return "unknown"


@contextmanager
def read_whole(checkpoint: Path) -> Iterator[None]:
    """What cannot be read here is a damaged checkpoint.

    Raises:
        ConfigError: it is.
    """
    try:
        yield
    except ConfigError:
        raise
    except Exception as error:  # of zip, pickle, torch, or of another version's state
        raise ConfigError(
            f"'{checkpoint}' cannot be read ({type(error).__name__}); remove '{checkpoint.parent}' and start again"
        ) from error


def load_checkpoint(run: RunFolder, config: TrainConfig, digest: str) -> tuple[int, Any]:
    """The number of finished steps, and the state that `save_checkpoint` was given after them.

    Raises:
        ConfigError: the checkpoint is damaged, or belongs to other settings or other examples.
    """
    with read_whole(run.checkpoint):
        content = torch.load(run.checkpoint, map_location="cpu", weights_only=True)
        bound, examples = dict(content["config"]), content["examples"]
        step, state = int(content["step"]), content["state"]
    for key, value in _binding(config).items():
        if bound.get(key) != value:
            raise ConfigError(
                f"cannot resume: {key} is {value}, but the run began with {bound.get(key)}; change it back"
            )
    if examples != digest:
        raise ConfigError(
            "cannot resume: train_file gives other examples than the run began with; restore it"
        )
    return step, state


class TrainingLog:
    """JSON lines about finished steps; a resumed run drops what came after its checkpoint."""

    def __init__(self, path: Path, finished_steps: int) -> None:
        kept = []
        if path.exists():
            # After the last line end there is nothing, or what a killed process had of its last line.
            *lines, _ = path.read_text(encoding="utf-8").split("\n")
            kept = [line for line in lines if _logged_step(line) <= finished_steps]
        temporary = path.with_suffix(".new")
        temporary.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
        os.replace(temporary, path)
        self._path = path

    def write(self, event: dict[str, Any]) -> None:
        """Append one event; it must have a `step`."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(event) + "\n")


def _logged_step(line: str) -> float:
    """The step of a line of the log; infinity if a disk has lost a part of it."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, TypeError, KeyError):
        return math.inf


def _binding(config: TrainConfig) -> dict[str, Any]:
    """The settings that decide the numbers, as plain JSON types."""
    free = FREE_TO_CHANGE - EVALUATION if config.early_stopping_patience else FREE_TO_CHANGE
    return config.model_dump(mode="json", exclude=free)
