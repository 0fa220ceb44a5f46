"""What a run tells while it goes on: `training.jsonl`, curves, progress and warnings. Only the main process tells.

In: what happened in steps and evaluations. Out: files, and lines on stderr. Decides nothing.
"""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from itertools import zip_longest
from typing import Any

from softspec.train.loop.checkpoint import TrainingLog
from softspec.train.loop.facts import HeldOut, StepFacts, as_json
from softspec.train.loop.folder import RunFolder
from softspec.train.loop.health import Explosions
from softspec.train.loop.state import Training
from softspec.train.watch.bar import Progress
from softspec.train.watch.trackers import Trackers, open_trackers


class Report:
    """What one run tells, step after step, in its log, its curves and on stderr."""

    def __init__(self, training: Training, log: TrainingLog, trackers: Trackers, progress: Progress) -> None:
        self._training = training
        self._log = log
        self._trackers = trackers
        self._progress = progress
        self._explosions = Explosions(training.config.max_grad_norm)

    def record(self, facts: StepFacts, scores: HeldOut | None, ended: bool) -> None:
        """Keep what `optimizer_step` returned, the held-out scores after it if any, and what early stopping came to."""
        if facts.step % self._training.config.logging_steps == 0 or facts.step == self._training.total_steps:
            self._record(as_json(facts))
        if scores:
            self._record({"step": facts.step, "held_out": as_json(scores)})
        if ended and self._training.early_stopping.is_on:
            self._record({"step": facts.step, "early_stopping": self._training.early_stopping.facts()})

    def tell(self, facts: StepFacts, scores: HeldOut | None, ended: bool) -> None:
        """Tell the user of the same, and warn."""
        progress, stopping = self._progress, self._training.early_stopping
        progress.advance(facts)
        for member, donor in zip_longest(facts.starved, facts.reseeded_from or ()):
            progress.say(self._training.starvation.warning(member, donor))
        explosion = self._explosions.warning(facts.step, facts.gradient_norms)
        if explosion:
            progress.say(explosion)
        if scores:
            progress.say(f"softspec: step {facts.step}: held-out mixture NLL {scores.mixture_nll:.4f} nats")
        if ended and stopping.is_on:
            progress.say(stopping.verdict(facts.step))

    def _record(self, event: dict[str, Any]) -> None:
        self._log.write(event)
        self._trackers.log(event)


@contextmanager
def open_report(training: Training, run: RunFolder, finished: int) -> Iterator[Report | None]:
    """The report of a run that has had `finished` steps; None in a process that is not the main one."""
    if not training.processes.is_main:
        yield None
        return
    with (
        open_trackers(training.config, run, finished) as trackers,
        closing(Progress(training.total_steps, finished)) as progress,
    ):
        yield Report(training, TrainingLog(run.log, finished), trackers, progress)
