"""Signals that end a run: each leaves a checkpoint, and none of them a traceback."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import softspec.train.run
from softspec.errors import Interrupted
from softspec.train.loop.signals import ENDING, stop_on_signals
from softspec.train.run import train_ensemble
from tests.support.tiny_training import write_config
from tests.support.training_runs import interrupted

ROOT = Path(__file__).parents[3]


def told_by(numbers: list[int]) -> tuple[int | None, list[str]]:
    """What is noted and told when these signals arrive."""
    lines: list[str] = []
    with stop_on_signals(lines.append) as stop:
        for number in numbers:
            os.kill(os.getpid(), number)
    return stop.signal_number, lines


@pytest.mark.parametrize("number", ENDING, ids=lambda number: number.name)
def test_every_ending_signal_is_noted_and_told(number: int) -> None:
    found, lines = told_by([number])

    assert found == number
    assert [line.startswith("stopping after this step") for line in lines] == [True]


def test_ctrl_c_again_ends_at_once() -> None:
    with pytest.raises(KeyboardInterrupt):
        told_by([signal.SIGINT, signal.SIGINT])


@pytest.mark.parametrize(
    "numbers",
    [(signal.SIGHUP, signal.SIGHUP), (signal.SIGINT, signal.SIGTERM), (signal.SIGTERM, signal.SIGTERM)],
    ids=["a closed terminal", "torchrun after Ctrl-C", "an impatient launcher"],
)
def test_what_terminals_and_launchers_send_again_changes_nothing(numbers: tuple[int, int]) -> None:
    found, lines = told_by(list(numbers))

    assert found == numbers[0]
    assert len(lines) == 1


@pytest.fixture
def handling() -> Iterator[Callable[[int, Any], None]]:
    """Sets a signal's handler for the time of a test."""
    before: list[tuple[int, Any]] = []

    def handle(number: int, handler: Any) -> None:
        before.append((number, signal.signal(number, handler)))

    yield handle
    for number, handler in before:
        signal.signal(number, handler)


def test_a_run_under_nohup_does_not_stop_when_the_terminal_closes(
    handling: Callable[[int, Any], None],
) -> None:
    handling(signal.SIGHUP, signal.SIG_IGN)

    assert told_by([signal.SIGHUP]) == (None, [])


def test_a_signal_that_other_code_handles_is_left_to_it(handling: Callable[[int, Any], None]) -> None:
    received: list[int] = []
    handling(signal.SIGUSR1, lambda number, frame: received.append(number))

    assert told_by([signal.SIGUSR1]) == (None, [])
    assert received == [signal.SIGUSR1]


def test_handlers_are_those_of_before_afterwards() -> None:
    before = [signal.getsignal(number) for number in ENDING]

    told_by([signal.SIGTERM, signal.SIGHUP, signal.SIGINT])

    assert [signal.getsignal(number) for number in ENDING] == before


def test_a_closed_terminal_leaves_a_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = interrupted(tmp_path, signal.SIGHUP)

    assert (tmp_path / "ensemble.partial" / "checkpoint.pt").is_file()
    assert "softspec: stopping after this step\n" in capsys.readouterr().err
    assert not config.output_dir.exists()


def test_the_first_ctrl_c_says_what_it_does(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    interrupted(tmp_path, signal.SIGINT)

    assert "stopping after this step; again: at once" in capsys.readouterr().err


def test_ctrl_c_twice_in_a_step_keeps_the_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = write_config(tmp_path, max_steps=8, save_steps=2)

    def pressed_twice(*arguments: Any) -> Any:
        if arguments[1] == 3:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
        return step(*arguments)

    step = softspec.train.run.optimizer_step
    monkeypatch.setattr(softspec.train.run, "optimizer_step", pressed_twice)

    with pytest.raises(
        Interrupted, match=r"stopped; go on from the last checkpoint with: .*--resume"
    ) as stop:
        train_ensemble(config)

    assert stop.value.exit_code == 130
    monkeypatch.setattr(softspec.train.run, "optimizer_step", step)
    assert train_ensemble(config, resume=True) == config.output_dir


def test_ctrl_c_while_the_data_are_read_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = write_config(tmp_path)

    def pressed(*_: Any) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(softspec.train.run, "read_data", pressed)

    with pytest.raises(Interrupted, match="stopped before the first checkpoint") as stop:
        train_ensemble(config)

    assert stop.value.exit_code == 130
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "config.yaml", "train.jsonl"]


def test_the_signal_in_an_evaluation_waits_for_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_config(tmp_path, max_steps=8, eval_file="train.jsonl", eval_steps=2)
    scoring = softspec.train.run.score_held_out

    def pressed(*arguments: Any) -> Any:
        os.kill(os.getpid(), signal.SIGINT)
        return scoring(*arguments)

    monkeypatch.setattr(softspec.train.run, "score_held_out", pressed)

    with pytest.raises(Interrupted, match="stopped after step 2 of 8"):
        train_ensemble(config)

    assert "stopping after this step" in capsys.readouterr().err


def started(folder: Path, command: str, *flags: str) -> "subprocess.Popen[str]":
    """The command line in a shell of its own process group, as a terminal starts it."""
    line = f"{sys.executable} -m softspec.app.cli train {folder / 'config.yaml'} {' '.join(flags)} {command}"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        ["bash", "-c", f"set -o pipefail; {line}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env=environment,
    )


def wait_for_steps(process: "subprocess.Popen[str]", folder: Path, count: int = 3) -> None:
    """Return once the log has so many lines."""
    log = folder / "ensemble.partial" / "training.jsonl"
    while process.poll() is None and not (log.exists() and len(log.read_text().splitlines()) >= count):
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "command"),
    [(signal.SIGINT, "2>&1 | tee log"), (signal.SIGHUP, "")],
    ids=["Ctrl-C with tee", "a closed terminal"],
)
def test_a_signal_to_all_that_a_terminal_runs_ends_with_its_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, command: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write_config(tmp_path, max_steps=100_000)

    with started(tmp_path, command) as process:
        wait_for_steps(process, tmp_path)
        os.killpg(process.pid, number)
        told, _ = process.communicate(timeout=60)

    assert process.returncode in (128 + number, -number)  # the shell's own, or what it was told
    assert "Traceback" not in told
    assert (tmp_path / "ensemble.partial" / "checkpoint.pt").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("module", ["cyclopts.core", "torch", "softspec.train.run"])
def test_ctrl_c_while_it_starts_is_no_traceback(tmp_path: Path, module: str) -> None:
    """At once after the import of that module; Python tells of each."""
    write_config(tmp_path, max_steps=100_000)
    command = [sys.executable, "-X", "importtime", "-m", "softspec.app.cli", "train"]

    with subprocess.Popen(
        [*command, str(tmp_path / "config.yaml")], stderr=subprocess.PIPE, text=True, cwd=ROOT
    ) as process:
        assert process.stderr
        for line in process.stderr:
            if line.startswith("import time:") and line.split("|")[-1].strip() == module:
                process.send_signal(signal.SIGINT)
                break
        told = process.stderr.read()

    assert process.returncode in (130, -signal.SIGINT)
    assert "Traceback" not in told


@pytest.mark.slow
@pytest.mark.parametrize("lines", [5, 57])
def test_a_reader_who_leaves_does_not_end_the_run(
    tmp_path: Path, lines: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = write_config(tmp_path, max_steps=20)

    with started(tmp_path, f"2>&1 | head -{lines}") as process:
        process.communicate(timeout=120)

    assert process.returncode == 0
    assert (config.output_dir / "ensemble.json").is_file()
