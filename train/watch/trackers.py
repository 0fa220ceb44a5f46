"""Curves of a run for TensorBoard, always, and for the trackers that `report_to` names (Weights & Biases, MLflow, ...).

In: the events of `training.jsonl`. Out: the same as scalars, by the trackers of `accelerate`. Whatever fails here costs
the curves and never the run.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from accelerate.tracking import (
    LOGGER_TYPE_TO_CLASS,
    GeneralTracker,
    TensorBoardTracker,
    get_available_trackers,
)
from accelerate.utils import LoggerType
from tqdm import tqdm

from softspec.errors import ConfigError
from softspec.train.config import TrainConfig
from softspec.train.loop.folder import TENSORBOARD as TENSORBOARD
from softspec.train.loop.folder import RunFolder

PROJECT = "softspec"
NOT_CURVES = {"step", "starved", "reseeded_from"}
"""The step is the axis; the others are lists of the members to which something happened."""


def check_trackers(config: TrainConfig) -> None:
    """Check that the trackers of `report_to` are known and installed.

    Raises:
        ConfigError: one is not.
    """
    installed = {str(name) for name in get_available_trackers()}
    for name in config.report_to:
        if name not in LOGGER_TYPE_TO_CLASS:
            raise ConfigError(f"report_to has '{name}', expected some of {', '.join(LOGGER_TYPE_TO_CLASS)}")
        if name in LoggerType.list() and name not in installed:
            raise ConfigError(f"report_to has '{name}', which is not installed: install it or leave it out")


class Trackers:
    """Started trackers; one that raises is left out from then on, with a line on stderr."""

    def __init__(self, trackers: list[GeneralTracker], config: TrainConfig) -> None:
        self._running = trackers
        self._each(lambda tracker: tracker.start())
        self._each(lambda tracker: _store(tracker, config))

    def log(self, event: dict[str, Any]) -> None:
        """Add the numbers of one event at its `step`."""
        values = scalars({key: value for key, value in event.items() if key not in NOT_CURVES})
        self._each(lambda tracker: tracker.log(values, step=event["step"]))

    def finish(self) -> None:
        """Write what is still in memory."""
        self._each(lambda tracker: tracker.finish())

    def _each(self, act: Callable[[GeneralTracker], None]) -> None:
        for tracker in self._running.copy():
            try:
                act(tracker)
            except Exception as error:  # of any library, about an account, a network or a disk
                self._running.remove(tracker)
                reason = " ".join(str(error).split()) or type(error).__name__
                tqdm.write(
                    f"softspec: training goes on without {tracker.name}, which failed: {reason}",
                    file=sys.stderr,
                )


@contextmanager
def open_trackers(config: TrainConfig, run: RunFolder, finished: int) -> Iterator[Trackers]:
    """All trackers of a run that has had `finished` steps; TensorBoard's files go to `tensorboard` in its folder.

    What TensorBoard had of later steps is hidden. Other trackers begin a new run, unless their own settings
    (`WANDB_RUN_ID`, `MLFLOW_RUN_ID`, ...) say otherwise.
    """
    trackers: list[GeneralTracker] = [TensorBoardTracker(TENSORBOARD, run.path, purge_step=finished + 1)]
    for name in sorted(set(config.report_to) - {TENSORBOARD}):
        kind = LOGGER_TYPE_TO_CLASS[name]
        place = (config.output_dir.parent,) if kind.requires_logging_directory else ()
        trackers.append(kind(PROJECT, *place))
    opened = Trackers(trackers, config)
    try:
        yield opened
    finally:
        opened.finish()


def scalars(values: dict[str, Any]) -> dict[str, float]:
    """Values with lists and mappings spread out: `{"load": [0.4, 0.6]}` becomes `{"load/0": 0.4, "load/1": 0.6}`."""
    found: dict[str, float] = {}
    for key, value in values.items():
        if isinstance(value, list):
            value = dict(enumerate(value))
        if isinstance(value, dict):
            found |= {f"{key}/{inner}": number for inner, number in scalars(value).items()}
        else:
            found[key] = value
    return found


def _store(tracker: GeneralTracker, config: TrainConfig) -> None:
    """Give a tracker the configuration, to be kept beside the curves."""
    if tracker.name != TENSORBOARD:  # which would show it as a run of its own, without curves
        tracker.store_init_configuration(config.model_dump(mode="json"))
