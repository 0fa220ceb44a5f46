"""The folder of an unfinished run, `<output_dir>.partial`: who is at work in it, and what the run began with.

In: a `TrainConfig`. Out: a `RunFolder` that is nobody else's until it is closed or its process dies. Deletes what
softspec writes and nothing else.
"""

import json
import os
import re
import shutil
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

from softspec.artefact.manifest import MANIFEST_NAME
from softspec.console import tell
from softspec.errors import ConfigError
from softspec.train.config import TrainConfig
from softspec.train.loop.lock import FolderLock

LOG_NAME = "training.jsonl"
BEGINNING_NAME = "run.json"
LOCK_NAME = "lock"
CHECKPOINT_NAME = "checkpoint.pt"
TENSORBOARD = "tensorboard"
MARGINS_NAME = "margins.json"
STAGED_NAME = "ensemble"
_OF_A_RUN = (
    CHECKPOINT_NAME,
    "checkpoint.new",
    LOG_NAME,
    "training.new",
    MARGINS_NAME,
    "margins.new",
    TENSORBOARD,
    STAGED_NAME,
    BEGINNING_NAME,
    LOCK_NAME,
)
"""All that a run writes into its folder, in the order in which it goes."""
SELECTION_NAME = "selection.json"
_OF_AN_ENSEMBLE = re.compile(
    rf"{re.escape(MANIFEST_NAME)}|{re.escape(LOG_NAME)}|{re.escape(SELECTION_NAME)}|{TENSORBOARD}|member-\d+"
)


@dataclass(frozen=True)
class Beginning:
    """What a run began with, beside the settings and examples that its checkpoints know.

    `overrides` are those of `--set`, `place` is where the folder lay; `base` is the fingerprint of the base,
    `held_out` the digest of the held-out units. `started_on` is the day that a chat template is told, in ISO form.
    """

    started_on: str
    overrides: tuple[str, ...] = ()
    place: str = ""
    base: str = ""
    held_out: str = ""


@dataclass
class RunFolder:
    """Where an unfinished run lives. Whoever opened it with `open_run` closes it.

    `started_on`: the day that the run's chat template is told, also when it goes on later. `is_new`: nothing was there,
    or what was there has been dropped.
    """

    path: Path
    started_on: date = field(default_factory=date.today)
    is_new: bool = False
    lock: FolderLock | None = None

    @property
    def checkpoint(self) -> Path:
        """The file with the newest saved state."""
        return self.path / CHECKPOINT_NAME

    @property
    def log(self) -> Path:
        """The file with one JSON object a line about what happened."""
        return self.path / LOG_NAME

    @property
    def margins(self) -> Path:
        """The file with what the base makes of preferences."""
        return self.path / MARGINS_NAME

    @property
    def staged(self) -> Path:
        """The folder of the finished ensemble before it moves into place."""
        return self.path / STAGED_NAME

    @property
    def beginning(self) -> Beginning | None:
        """What the run began with; None where none has begun.

        Raises:
            ConfigError: the file that says so is damaged.
        """
        file = self.path / BEGINNING_NAME
        if not file.exists():
            return None
        try:
            content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
            return Beginning(**{**content, "overrides": tuple(content["overrides"])})
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise ConfigError(f"'{file}' cannot be read: remove '{self.path}' and start again") from error

    @property
    def overrides(self) -> list[str]:
        """What `--set` said when the run began, each KEY=VALUE; files that moved along with the folder are found."""
        began = self.beginning
        return (
            [_moved(override, Path(began.place), self.path) for override in began.overrides] if began else []
        )

    def clear(self, overrides: Sequence[str] = (), base: str = "", held_out: str = "") -> None:
        """Begin anew: drop what an earlier run left here, and note what this one begins with."""
        _delete(self.path, set(_OF_A_RUN) - {LOCK_NAME})
        self.path.mkdir(parents=True, exist_ok=True)
        self.is_new = True
        place = str(self.path.resolve())
        began = Beginning(self.started_on.isoformat(), tuple(overrides), place, base, held_out)
        (self.path / BEGINNING_NAME).write_text(json.dumps(asdict(began)), encoding="utf-8")

    def remove(self) -> None:
        """Delete what the run wrote, and the folder unless something else is in it."""
        _delete(self.path, _OF_A_RUN)
        with suppress(OSError):
            self.path.rmdir()
        if self.path.exists():
            tell(f"'{self.path}' stays, as it holds what no run wrote: {_listed(self.path)}")

    def close(self) -> None:
        """Leave the folder to others; what came to no step and no checkpoint goes."""
        if self.lock is None:
            return
        has_steps = self.log.exists() and self.log.stat().st_size > 0
        if self.is_new and self.path.is_dir() and not (self.checkpoint.exists() or has_steps):
            self.remove()
        self.lock.close()


def run_folder(config: TrainConfig) -> RunFolder:
    """The run folder beside the output, to look at."""
    return RunFolder(config.output_dir.with_name(config.output_dir.name + ".partial"))


def open_run(config: TrainConfig, resume: bool, overwrite: bool, is_main: bool = True) -> RunFolder:
    """The folder of this run, refused where it would destroy something; the main process keeps others out.

    Raises:
        ConfigError: the output exists, an unfinished run exists and neither flag says what to do, there is nothing to
            resume, another run is at work, or nothing can be written there.
    """
    run = run_folder(config)
    refuse_output(config.output_dir, overwrite)
    if resume and not run.checkpoint.is_file():
        raise ConfigError(f"nothing to resume: no checkpoint in '{run.path}'; start without --resume")
    if not resume:
        _refuse_contents(run, overwrite)
    began = run.beginning if resume else None
    if began:
        run.started_on = date.fromisoformat(began.started_on)
    if is_main:
        run.is_new = not run.path.exists()
        run.lock = FolderLock(run.path / LOCK_NAME)
    return run


def refuse_output(output: Path, overwrite: bool) -> None:
    """Raise unless the finished ensemble may lie there."""
    if output.is_symlink() or output.exists():
        if not overwrite:
            raise ConfigError(f"'{output}' exists; choose another output_dir or replace it with --overwrite")
        if not (output / MANIFEST_NAME).is_file():
            raise ConfigError(
                f"'{output}' is not an ensemble directory, so it is not overwritten; choose another output_dir"
            )
        if strange := strangers(output):
            raise ConfigError(
                f"'{output}' also holds what training did not write ({', '.join(strange)}), so it is not overwritten; "
                "move that away or choose another output_dir"
            )


def strangers(ensemble: Path) -> list[str]:
    """What is in an ensemble directory that `softspec train` did not put there."""
    return sorted(path.name for path in ensemble.iterdir() if not _OF_AN_ENSEMBLE.fullmatch(path.name))


def _refuse_contents(run: RunFolder, overwrite: bool) -> None:
    """Raise if a new run would drop an unfinished one, or anything that no run wrote."""
    if not run.path.is_dir():
        return
    found = {path.name for path in run.path.iterdir()} - {LOCK_NAME}
    if CHECKPOINT_NAME in found and not overwrite:
        raise ConfigError(
            f"'{run.path}' has an unfinished run; go on with --resume or drop it with --overwrite"
        )
    if found and (found - set(_OF_A_RUN) or not found & {BEGINNING_NAME, CHECKPOINT_NAME}):
        raise ConfigError(
            f"'{run.path}' holds what no run wrote ({_listed(run.path)}), so it is left alone; move that away or "
            "choose another output_dir"
        )


def _delete(folder: Path, names: Collection[str]) -> None:
    """Delete these of a run's files, the lock last."""
    for name in _OF_A_RUN:
        if name not in names:
            continue
        path = folder / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with suppress(FileNotFoundError):
                path.unlink()


def _listed(folder: Path) -> str:
    return ", ".join(sorted(path.name for path in folder.iterdir() if path.name != LOCK_NAME))


def _moved(override: str, place: Path, now: Path) -> str:
    """The KEY=VALUE with the path that its file has now: the run folder lay in `place`, and others moved along."""
    key, _, value = override.partition("=")
    path = json.loads(value)
    if not isinstance(path, str) or not path.startswith("/") or Path(path).exists():
        return override
    moved = Path(os.path.normpath(now / os.path.relpath(path, place)))
    return f"{key}={json.dumps(str(moved))}" if moved.exists() else override
