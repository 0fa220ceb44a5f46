"""A run's folder: one run at a time in it, and nothing deleted that no run wrote."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import pytest

import softspec.train.loop.lock
import softspec.train.run
from softspec.errors import ConfigError
from softspec.train.config import TrainConfig
from softspec.train.loop.folder import BEGINNING_NAME, RunFolder, open_run
from softspec.train.loop.lock import FolderLock
from softspec.train.run import train_ensemble
from tests.support.tiny_training import config_of_no_files, write_config
from tests.support.training_runs import Killed, dying_at, interrupted

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]


@pytest.fixture
def config(tmp_path: Path) -> TrainConfig:
    """A configuration whose output goes to `out` in the test's own folder."""
    return config_of_no_files(output_dir=tmp_path / "out")


def opened(config: TrainConfig, resume: bool = False, overwrite: bool = False) -> RunFolder:
    return open_run(config, resume, overwrite)


def with_checkpoint(config: TrainConfig) -> RunFolder:
    """A run that was begun, saved and left."""
    run = opened(config)
    run.clear(["a=1"], "base", "held out")
    run.checkpoint.touch()
    run.close()
    return run


# One run at a time


def test_a_second_run_is_refused_with_the_process_of_the_first(config: TrainConfig) -> None:
    first = opened(config)

    with pytest.raises(
        ConfigError, match=rf"another run is writing to '.*out\.partial' \(process {os.getpid()} on "
    ):
        opened(config)

    first.close()
    opened(config).close()


HOLDER = """\
import sys, time
from pathlib import Path
from softspec.train.loop.lock import FolderLock
lock = FolderLock(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(60)
"""


def test_a_kill_frees_the_folder(tmp_path: Path) -> None:
    path = tmp_path / "run" / "lock"
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        assert process.stdout.readline() == "held\n"
        with pytest.raises(ConfigError, match=rf"process {process.pid} on "):
            FolderLock(path)
        process.kill()

    FolderLock(path).close()


def test_a_folder_that_vanishes_while_it_is_being_locked_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run before has just ended."""
    path, real = tmp_path / "run" / "lock", softspec.train.loop.lock.fcntl.flock
    calls: list[Any] = []

    def after_the_other_ended(*arguments: Any) -> None:
        if not calls:
            path.unlink()
        calls.append(arguments)
        real(*arguments)

    monkeypatch.setattr(softspec.train.loop.lock.fcntl, "flock", after_the_other_ended)

    lock = FolderLock(path)

    assert len(calls) == 2
    with pytest.raises(ConfigError, match="another run is writing"):
        FolderLock(path)
    lock.close()


def test_a_file_system_without_locks_is_told_and_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_locks(*_: Any) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(softspec.train.loop.lock.fcntl, "flock", no_locks)

    FolderLock(tmp_path / "lock").close()

    assert "see to it that no other run writes there" in capsys.readouterr().err


def test_a_second_whole_run_is_refused_and_leaves_the_first_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = write_config(tmp_path, max_steps=3)
    step = softspec.train.run.optimizer_step
    refused = []

    def while_another_starts(*arguments: Any) -> Any:
        for overwrite in (False, True):
            with pytest.raises(ConfigError, match="another run is writing") as error:
                train_ensemble(config, overwrite=overwrite)
            refused.append(error)
        return step(*arguments)

    monkeypatch.setattr(softspec.train.run, "optimizer_step", while_another_starts)

    train_ensemble(config)

    assert len(refused) == 6
    lines = (config.output_dir / "training.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3]


# Where nothing can be written


@pytest.mark.parametrize("place", ["/proc/run", "/dev/null/run", "file/run"], ids=["proc", "null", "file"])
def test_a_place_where_nothing_can_be_written_is_refused_before_the_data_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    (tmp_path / "file").touch()
    config = write_config(tmp_path, output_dir=place)
    monkeypatch.setattr(softspec.train.run, "read_data", None)

    with pytest.raises(ConfigError, match=r"cannot write to '[^\n]*choose another output_dir$"):
        train_ensemble(config)


# What is deleted, and what is not


def other_folder(path: Path) -> None:
    """A folder of the user's own, with a name that a run would take."""
    path.mkdir()
    (path / "notes.txt").write_text("mine")


def test_what_lies_beside_the_output_stays(tmp_path: Path) -> None:
    """`.old` was deleted once, before it was needed."""
    config = write_config(tmp_path, max_steps=1)
    train_ensemble(config)
    for name in ("ensemble.old", "ensemble.new", ".ensemble.retired-1", "ensemble.partial.old"):
        other_folder(tmp_path / name)
    before = sorted(tmp_path.rglob("notes.txt"))

    train_ensemble(config, overwrite=True)

    assert sorted(tmp_path.rglob("notes.txt")) == before
    assert len(before) == 4


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_that_no_run_made_is_refused_and_kept(config: TrainConfig, overwrite: bool) -> None:
    folder = config.output_dir.with_name("out.partial")
    other_folder(folder)

    with pytest.raises(ConfigError, match=r"holds what no run wrote \(notes\.txt\)"):
        opened(config, overwrite=overwrite)

    assert [path.name for path in folder.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("name", ["tensorboard", "ensemble", "training.jsonl"])
def test_a_folder_with_names_like_a_runs_is_not_taken_for_one(config: TrainConfig, name: str) -> None:
    folder = config.output_dir.with_name("out.partial")
    other_folder(folder)
    (folder / "notes.txt").rename(folder / name)

    with pytest.raises(ConfigError, match="holds what no run wrote"):
        opened(config, overwrite=True)

    assert (folder / name).read_text() == "mine"


def test_a_file_of_the_users_in_a_runs_folder_stays(
    config: TrainConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    run = opened(config)
    run.clear()
    run.checkpoint.touch()
    (run.path / "notes.txt").write_text("mine")

    run.remove()
    run.close()

    assert [path.name for path in run.path.iterdir()] == ["notes.txt"]
    assert "stays, as it holds what no run wrote: notes.txt" in capsys.readouterr().err


def test_overwriting_an_ensemble_with_files_of_the_users_in_it_is_refused(tmp_path: Path) -> None:
    config = write_config(tmp_path, max_steps=1)
    train_ensemble(config)
    (config.output_dir / "notes.txt").write_text("mine")

    with pytest.raises(ConfigError, match=r"also holds what training did not write \(notes\.txt\)"):
        train_ensemble(config, overwrite=True)

    assert (config.output_dir / "notes.txt").read_text() == "mine"
    assert not (tmp_path / "ensemble.partial").exists()


def test_a_run_that_was_killed_before_its_first_checkpoint_may_begin_anew(config: TrainConfig) -> None:
    run = opened(config)
    run.clear()
    run.log.write_text('{"step": 1}\n')
    run.close()

    again = opened(config)
    again.clear()

    assert not again.log.exists()
    again.close()


def test_a_mistake_leaves_no_folder(config: TrainConfig) -> None:
    opened(config).close()

    assert not config.output_dir.with_name("out.partial").exists()


# What a run began with


def test_a_resumed_run_has_the_day_on_which_it_began(config: TrainConfig) -> None:
    """For templates that tell the model what day it is."""
    run = with_checkpoint(config)
    file = run.path / BEGINNING_NAME
    file.write_text(file.read_text().replace(date.today().isoformat(), "2025-02-28"))

    resumed, anew = opened(config, resume=True), None
    resumed.close()
    anew = opened(config, overwrite=True)
    anew.close()

    assert resumed.started_on == date(2025, 2, 28)
    assert anew.started_on == date.today()


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"overrides": []}', '{"overrides": 7, "started_on": ""}']
)
def test_a_damaged_beginning_is_one_line(config: TrainConfig, content: str) -> None:
    run = with_checkpoint(config)
    (run.path / BEGINNING_NAME).write_text(content)

    with pytest.raises(ConfigError, match=r"run\.json' cannot be read: remove '.*' and start again"):
        opened(config, resume=True)


def a_moved_run(tmp_path: Path) -> TrainConfig:
    """An interrupted run, which now lies elsewhere with all that it needs; nothing is left where it was."""
    interrupted(tmp_path / "before")
    (tmp_path / "before").rename(tmp_path / "after")
    return write_config(tmp_path / "after", max_steps=40)


def test_a_run_can_be_moved(tmp_path: Path) -> None:
    (tmp_path / "before").mkdir()
    config = a_moved_run(tmp_path)

    assert train_ensemble(config, resume=True) == tmp_path / "after" / "ensemble"


def test_files_that_set_named_are_found_where_the_run_has_moved(tmp_path: Path) -> None:
    before, after = tmp_path / "before", tmp_path / "after"
    before.mkdir()
    (before / "data.jsonl").touch()
    (tmp_path / "stays.jsonl").touch()
    run = opened(config_of_no_files(output_dir=before / "runs" / "out"))
    run.clear(
        [
            f"train_file={json.dumps(str(before / 'data.jsonl'))}",
            f"eval_file={json.dumps(str(tmp_path / 'stays.jsonl'))}",
            'base_model="owner/name"',
            "max_steps=3",
        ]
    )
    run.checkpoint.touch()
    run.close()
    before.rename(after)

    moved = RunFolder(after / "runs" / "out.partial").overrides

    assert moved == [
        f'train_file="{after / "data.jsonl"}"',
        f'eval_file="{tmp_path / "stays.jsonl"}"',
        'base_model="owner/name"',
        "max_steps=3",
    ]


@pytest.mark.parametrize(
    "settings", [{}, {"early_stopping_patience": 9, "eval_steps": 1}], ids=["", "stopping"]
)
def test_a_run_killed_while_it_ends_is_written_when_it_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]
) -> None:
    config = write_config(tmp_path, max_steps=2, eval_file="train.jsonl", **settings)
    export: Callable[..., Any] = softspec.train.run.export
    monkeypatch.setattr(softspec.train.run, "export", dying_at(1, export))
    with pytest.raises(Killed):
        train_ensemble(config)
    monkeypatch.setattr(softspec.train.run, "export", export)

    assert train_ensemble(config, resume=True) == config.output_dir
