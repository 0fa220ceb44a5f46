"""A run that can stop and go on: its folder next to the output, its checkpoint, its log, and the signals that end it.

In: the state after a step. Out: the same state later. Knows nothing of the objective. The data order and the learning
rate follow from the step number, so they need no state.
"""

import json
import os
import shutil
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import torch

from softspec.artefact.manifest import MANIFEST_NAME
from softspec.errors import ConfigError
from softspec.train.config import TrainConfig

LOG_NAME = "training.jsonl"
OVERRIDES_NAME = "overrides.json"
STARTED_NAME = "started"
FREE_TO_CHANGE = {
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
}
"""Settings that a resumed run may change: they do not touch the numbers (the examples have their own digest)."""
EVALUATION = {"eval_file", "eval_steps", "dataset_config", "dataset_test_split"}
"""These decide, after all, when early stopping ends a run."""


@dataclass(frozen=True)
class RunFolder:
    """Where an unfinished run lives: `<output_dir>.partial`."""

    path: Path

    @property
    def checkpoint(self) -> Path:
        """The file with the newest saved state."""
        return self.path / "checkpoint.pt"

    @property
    def log(self) -> Path:
        """The file with one JSON object a line about what happened."""
        return self.path / LOG_NAME

    @property
    def staged(self) -> Path:
        """The folder of the finished ensemble before it moves into place."""
        return self.path / "ensemble"

    @property
    def overrides(self) -> list[str]:
        """What `--set` said when the run began, each KEY=VALUE."""
        file = self.path / OVERRIDES_NAME
        return json.loads(file.read_text(encoding="utf-8")) if file.exists() else []

    @property
    def started(self) -> datetime:
        """When the run began; now if nobody wrote it down."""
        file = self.path / STARTED_NAME
        return datetime.fromisoformat(file.read_text(encoding="utf-8")) if file.exists() else datetime.now()

    def clear(self, overrides: Sequence[str] = (), started: datetime | None = None) -> None:
        """Begin anew: drop whatever an earlier run left here."""
        self.remove()
        self.path.mkdir(parents=True)
        (self.path / OVERRIDES_NAME).write_text(json.dumps(overrides), encoding="utf-8")
        (self.path / STARTED_NAME).write_text((started or datetime.now()).isoformat(), encoding="utf-8")

    def remove(self) -> None:
        """Delete the folder and all that is in it."""
        shutil.rmtree(self.path, ignore_errors=True)


def run_folder(config: TrainConfig) -> RunFolder:
    """The run folder beside the output."""
    return RunFolder(config.output_dir.with_name(config.output_dir.name + ".partial"))


def open_run(config: TrainConfig, resume: bool, overwrite: bool) -> RunFolder:
    """The folder of this run, refused where it would destroy something.

    Raises:
        ConfigError: the output exists, an unfinished run exists and neither flag says what to do, or there is
            nothing to resume.
    """
    output, run = config.output_dir, run_folder(config)
    if output.exists() and not overwrite:
        raise ConfigError(f"'{output}' exists; choose another output_dir or replace it with --overwrite")
    if output.exists() and not (output / MANIFEST_NAME).is_file():
        raise ConfigError(
            f"'{output}' is not an ensemble directory, so it is not overwritten; choose another output_dir"
        )
    if resume and not run.checkpoint.is_file():
        raise ConfigError(f"nothing to resume: no checkpoint in '{run.path}'; start without --resume")
    if run.checkpoint.is_file() and not resume and not overwrite:
        raise ConfigError(
            f"'{run.path}' has an unfinished run; go on with --resume or drop it with --overwrite"
        )
    return run


def save_checkpoint(
    run: RunFolder, step: int, state: Mapping[str, object], config: TrainConfig, digest: str
) -> None:
    """Store everything that later steps depend on; a crash while writing leaves the older checkpoint."""
    content = {"step": step, "state": state, "config": _binding(config), "examples": digest}
    temporary = run.checkpoint.with_suffix(".new")
    with temporary.open("wb") as file:
        torch.save(content, file)
        file.flush()
        os.fsync(file.fileno())  # or a machine that dies may have renamed the file without its data
    os.replace(temporary, run.checkpoint)


def load_checkpoint(run: RunFolder, config: TrainConfig, digest: str) -> tuple[int, Any]:
    """The number of finished steps, and the state that `save_checkpoint` was given after them.

    Raises:
        ConfigError: the checkpoint belongs to other settings or other examples.
    """
    content = torch.load(run.checkpoint, map_location="cpu", weights_only=True)
    for key, value in _binding(config).items():
        if content["config"].get(key) != value:
            found, expected = value, content["config"].get(key)
            raise ConfigError(
                f"cannot resume: {key} is {found}, but the run began with {expected}; change it back"
            )
    if content["examples"] != digest:
        raise ConfigError(
            "cannot resume: train_file gives other examples than the run began with; restore it"
        )
    return int(content["step"]), content["state"]


class TrainingLog:
    """JSON lines about finished steps; a resumed run drops what came after its checkpoint."""

    def __init__(self, path: Path, finished_steps: int) -> None:
        kept = []
        if path.exists():
            # After the last line end there is nothing, or what a killed process had of its last line.
            *lines, _ = path.read_text(encoding="utf-8").split("\n")
            kept = [line for line in lines if json.loads(line)["step"] <= finished_steps]
        temporary = path.with_suffix(".new")
        temporary.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
        os.replace(temporary, path)
        self._path = path

    def write(self, event: dict[str, Any]) -> None:
        """Append one event; it must have a `step`."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(event) + "\n")


@dataclass
class StopRequest:
    """The first SIGINT or SIGTERM that arrived; None so far."""

    signal_number: int | None = None


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Note SIGINT and SIGTERM instead of dying at once; a second signal acts as usual.

    Outside the main thread Python delivers no signals, so there is nothing to catch.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def note(number: int, frame: object) -> None:
        request.signal_number = number
        for each, handler in before.items():
            signal.signal(each, handler)

    for number in before:
        signal.signal(number, note)
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _binding(config: TrainConfig) -> dict[str, Any]:
    """The settings that decide the numbers, as plain JSON types."""
    free = FREE_TO_CHANGE - EVALUATION if config.early_stopping_patience else FREE_TO_CHANGE
    return config.model_dump(mode="json", exclude=free)
