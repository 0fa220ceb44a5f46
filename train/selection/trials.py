"""Training configurations, a part of their steps at a time, on one base and one set of tokenised data.

In: a `Configuration` and how far it is to go. Out: what the held-out units come to under its members. What was trained
before is not trained again. Chooses nothing.
"""

import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from softspec.console import tell, tell_at_once
from softspec.errors import DivergedError, Interrupted
from softspec.maths.mixture import uniform_log_weights
from softspec.maths.uncertainty import posterior_information
from softspec.train.config import TrainConfig
from softspec.train.data.survey import survey
from softspec.train.data.units import Unit
from softspec.train.diagnosis.probe import critical_alpha
from softspec.train.loop.checkpoint import load_checkpoint, save_checkpoint
from softspec.train.loop.folder import RunFolder
from softspec.train.loop.margins import keep_margins, read_margins
from softspec.train.loop.signals import stop_on_signals
from softspec.train.loop.state import Training
from softspec.train.loop.step import optimizer_step
from softspec.train.run import assemble, check_names
from softspec.train.selection.journal import Journal
from softspec.train.selection.plan import Configuration
from softspec.train.selection.search import Critical
from softspec.train.selection.units import frame_of, score
from softspec.train.watch.log import open_report

SECONDS_NAME = "seconds"


class Trials:
    """Configurations of one `TrainConfig`, which are trained and scored as far as they are asked for.

    `base` is the fingerprint of `model`; `selection` are the held-out units by which is chosen, and nothing here has
    seen others.
    """

    def __init__(
        self,
        config: TrainConfig,
        model: PreTrainedModel,
        base: str,
        examples: Sequence[Unit],
        selection: Sequence[Unit],
        journal: Journal,
    ) -> None:
        self.config, self.model, self.base, self.journal = config, model, base, journal
        self.examples, self.selection = examples, selection
        self.survey = survey(examples, config.granularity == "group", config.train_file)
        self.frame = frame_of(selection, config)
        self.parents: dict[Configuration, tuple[Configuration, int]] = {}

    def measure(self, each: Configuration, step: int) -> Tensor | None:
        """Log-likelihoods of the held-out columns, (K, C), after `step` steps; None if it diverged before them.

        Raises:
            Interrupted: a signal arrived; what is trained so far is kept.
        """
        known = self.journal.table(each, step)
        if known is None:
            with self.training(each) as training:
                self._train_and_score(training, each, step)
            known = self.journal.table(each, step)
            assert known is not None
        loglik = known["loglik"]
        self._note(each, step, loglik, known["seconds"])
        return loglik

    def branch(self, each: Configuration, parent: Configuration, step: int) -> None:
        """Let a configuration begin after `step` steps, with the members that `parent` has then."""
        self.parents[each] = parent, step
        self.journal.note(each, starts_from={"name": parent.name, "step": step})
        run, source = self.journal.run_of(each), self.journal.run_of(parent)
        if run.checkpoint.exists() or self.journal.has_scored(each):
            return
        run.path.mkdir(parents=True, exist_ok=True)
        with self.training(each) as training:
            done, state = load_checkpoint(source, parent.applied(self.config), training.survey.digest)
            assert done == step, f"'{source.path}' is at step {done}, expected {step}"
            if source.log.exists():
                shutil.copyfile(source.log, run.log)
            save_checkpoint(run, done, state, training.config, training.survey.digest)

    def critical_alpha(self, each: Configuration) -> Critical | None:
        """Above which alpha the one adapter would part into several, from the units by which is chosen."""

        def probed() -> dict[str, Any]:
            with self.training(each) as training:
                self.restore(training, each)
                found = critical_alpha(training, self.selection)
            return {"value": found.value, "low": found.low, "high": found.high, "n": found.n}

        if not self.journal.run_of(each).checkpoint.exists():
            return None
        return Critical(**self.journal.remembered(f"critical-alpha_{each.name}", probed))

    @contextmanager
    def training(self, each: Configuration) -> Iterator[Training]:
        """A run of the configuration, as far as it was trained; the base is free again afterwards."""
        config = each.applied(self.config)
        margins = read_margins(self.journal.margins)
        spec = check_names(config)
        training = assemble(
            config, spec, self.model, self.survey, self.examples, self.selection, margins, self.base
        )
        if not margins:
            keep_margins(self.journal.margins, training.examples, training.held_out)
        try:
            yield training
        finally:
            training.members.uninstall()

    def restore(self, training: Training, each: Configuration) -> int:
        """Put a run where its checkpoint was written; returns the number of its steps."""
        run = self.journal.run_of(each)
        if not run.checkpoint.exists():
            run.path.mkdir(parents=True, exist_ok=True)
            return 0
        done, state = load_checkpoint(run, training.config, training.survey.digest)
        training.load_state_dict(state)
        return done

    def _train_and_score(self, training: Training, each: Configuration, step: int) -> None:
        run = self.journal.run_of(each)
        done = self.restore(training, each)
        tell(f"{each}: steps {done} to {step}")
        try:
            seconds = _advance(training, run, done, step)
            loglik = score(training.members, training.held_out, training.config, self.frame)
        except DivergedError as error:
            tell(str(error))
            self.journal.keep(each, step, None, {"seconds": _seconds(run)})
            return
        self.journal.keep(each, step, loglik, {"seconds": seconds})

    def _note(self, each: Configuration, step: int, loglik: Tensor | None, seconds: float) -> None:
        began = self.parents[each][1] if each in self.parents else 0
        facts: dict[str, float] = {"step": step}
        if loglik is not None:
            facts |= {
                "nll": self.frame.mean(self.frame.losses(loglik)),
                "member_nll": self.frame.mean(self.frame.losses(loglik, renyi_alpha=0.0)),
                "mutual_information": self._information(loglik),
            }
        self.journal.note(
            each, rungs=[facts], adapter_steps=each.num_members * (step - began), seconds=round(seconds, 1)
        )

    def _information(self, loglik: Tensor) -> float:
        """How far a unit tells which member explains it, the mean over units, nats."""
        information = posterior_information(uniform_log_weights(len(loglik)), loglik)
        return ((self.frame.weights * information).sum() / self.frame.weights.sum()).item()


def _advance(training: Training, run: RunFolder, done: int, until: int) -> float:
    """Take the steps up to `until`, and keep what came of them; returns the seconds of all steps so far."""
    config, seconds, started = training.config, _seconds(run), time.monotonic()
    with open_report(training, run, done) as report, stop_on_signals(tell_at_once) as stop:
        while done < until:
            facts = optimizer_step(training, done)
            done += 1
            if report:
                report.record(facts, None, ended=False)
                report.tell(facts, None, ended=False)
            is_due = config.save_steps is not None and done % config.save_steps == 0
            if done == until or is_due or stop.signal_number:
                save_checkpoint(run, done, training.state_dict(), config, training.survey.digest)
                total = seconds + time.monotonic() - started
                (run.path / SECONDS_NAME).write_text(str(total), encoding="utf-8")
            if stop.signal_number:
                raise Interrupted(
                    "stopped; the same command goes on with what is finished", stop.signal_number
                )
    return _seconds(run)


def _seconds(run: RunFolder) -> float:
    """How long a configuration has been trained so far."""
    file = run.path / SECONDS_NAME
    return float(file.read_text(encoding="utf-8")) if file.exists() else 0.0
