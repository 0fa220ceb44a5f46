"""SIGKILL at any moment: what a resumed run finds is whole, and its end is the same."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from softspec.train.config import TrainConfig
from softspec.train.loop.checkpoint import LOG_NAME, TrainingLog, open_run, save_checkpoint
from softspec.train.run import train_ensemble
from tests.support.tiny_training import write_config
from tests.support.training_runs import assert_same_adapters, logged

STEPS = 120
SETTINGS: dict[str, Any] = {
    "max_steps": STEPS,
    "save_steps": 3,
    "eval_file": "train.jsonl",
    "eval_steps": 25,
    "early_stopping_patience": STEPS,
}


def kill_in_training(config: TrainConfig, lines: int, delay_s: float, *flags: str) -> None:
    """Run the command line, and kill it that long after its log has so many lines and there is a checkpoint."""
    folder = config.output_dir.with_name("ensemble.partial")
    command = [
        sys.executable,
        "-m",
        "softspec.app.cli",
        "train",
        str(folder.parent / "config.yaml"),
        *flags,
    ]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None and not (
            (folder / "checkpoint.pt").exists() and len(log_lines(folder)) >= lines
        ):
            time.sleep(0.002)
        time.sleep(delay_s)
        process.kill()
    assert process.returncode == -signal.SIGKILL


def log_lines(folder: Path) -> list[str]:
    """Lines of the log, the last of which may be torn."""
    log = folder / LOG_NAME
    return log.read_text().splitlines() if log.exists() else []


@pytest.mark.timeout(300)
@pytest.mark.slow
def test_a_run_that_was_killed_twice_ends_as_one_that_was_not(tmp_path: Path) -> None:
    """The second time while it goes on from the first."""
    whole = write_config(tmp_path, output_dir="whole", **SETTINGS)
    train_ensemble(whole)
    config = write_config(tmp_path, **SETTINGS)
    moments = random.Random(0)

    kill_in_training(config, moments.randrange(4, STEPS // 3), moments.uniform(0, 0.05))
    kill_in_training(
        config, moments.randrange(STEPS // 2, STEPS // 4 * 3), moments.uniform(0, 0.05), "--resume"
    )
    train_ensemble(config, resume=True)

    assert_same_adapters(whole, config)
    assert logged(config) == logged(whole)
    events = EventAccumulator(str(config.output_dir / "tensorboard"), {"scalars": 0}).Reload()
    assert [event.step for event in events.Scalars("loss")] == list(range(1, STEPS + 1))


def test_a_torn_last_line_of_the_log_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / LOG_NAME
    path.write_text('{"step": 1}\n{"step": 2}\n{"st')

    TrainingLog(path, finished_steps=2).write({"step": 3})

    assert path.read_text() == '{"step": 1}\n{"step": 2}\n{"step": 3}\n'


@pytest.mark.parametrize("torn", ["torch.save", "os.fsync", "os.replace"])
def test_a_crash_while_a_checkpoint_is_written_leaves_the_older_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, torn: str
) -> None:
    config = write_config(tmp_path)
    run = open_run(config, resume=False, overwrite=False)
    run.clear()
    save_checkpoint(run, 1, {"weights": []}, config, "digest")
    before = run.checkpoint.read_bytes()
    monkeypatch.setattr(f"softspec.train.loop.checkpoint.{torn}", fail)

    with pytest.raises(InterruptedError):
        save_checkpoint(run, 2, {"weights": []}, config, "digest")

    assert run.checkpoint.read_bytes() == before


def fail(*_: object) -> None:
    raise InterruptedError


def test_a_checkpoint_is_on_the_disk_before_it_takes_the_place_of_the_older_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rename may reach the disk before the data do, if the machine loses power then."""
    config = write_config(tmp_path)
    run = open_run(config, resume=False, overwrite=False)
    run.clear()
    done: list[str] = []

    def noting(name: str, real: Callable[..., None]) -> Callable[..., None]:
        def note_and_act(*arguments: Any) -> None:
            done.append(name)
            real(*arguments)

        return note_and_act

    for name in ("fsync", "replace"):
        monkeypatch.setattr(os, name, noting(name, getattr(os, name)))

    save_checkpoint(run, 1, {"weights": []}, config, "digest")

    assert done == ["fsync", "replace"]
