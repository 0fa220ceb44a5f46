"""Fine-tuning of K members under one alpha-Renyi loss: the story of `softspec train`, for completions and preferences.

In: a `TrainConfig`. Out: an ensemble directory. Read `train_ensemble` first; the other functions are its verbs.
"""

import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import date
from itertools import chain
from pathlib import Path
from typing import IO

from torch import nn
from tqdm import tqdm
from transformers import PreTrainedModel

from softspec.artefact.base import context_length, end_of_turn_ids
from softspec.artefact.fingerprint import fingerprint
from softspec.console import tell, tell_at_once, unbroken_output
from softspec.errors import ConfigError, Interrupted
from softspec.maths.mixture import uniform_log_weights
from softspec.train.config import TrainConfig
from softspec.train.data.choices import check_choices
from softspec.train.data.notes import Notes
from softspec.train.data.overlap import Overlap
from softspec.train.data.promise import doubts
from softspec.train.data.reading import Reading
from softspec.train.data.sources import read_rows
from softspec.train.data.store import Store, write_units
from softspec.train.data.survey import Survey, survey
from softspec.train.data.units import Example, Unit
from softspec.train.loop.checkpoint import load_checkpoint, read_whole
from softspec.train.loop.facts import HeldOut
from softspec.train.loop.folder import RunFolder, open_run
from softspec.train.loop.health import Starvation, patience_of
from softspec.train.loop.keeping import keep_frozen
from softspec.train.loop.margins import Margins, digest_of, keep_margins, read_margins, with_reference
from softspec.train.loop.memory import advice_on_memory
from softspec.train.loop.optimizer import MembersAdamW
from softspec.train.loop.saving import save, saved_on_error
from softspec.train.loop.schedule import ExampleOrder, total_steps
from softspec.train.loop.signals import stop_on_signals
from softspec.train.loop.state import Training
from softspec.train.loop.step import optimizer_step
from softspec.train.loop.stopping import EarlyStopping
from softspec.train.members.base import load_base, load_skeleton, load_tokenizer
from softspec.train.members.members import Members
from softspec.train.members.servable import check_servable
from softspec.train.members.shared import check_shareable, load_shared_base
from softspec.train.members.spec import LoraSpec, resolve_spec, what_is_adapted
from softspec.train.objective.objective import objective_of
from softspec.train.objective.prior import prior_of
from softspec.train.processes import Processes, is_main_process
from softspec.train.result.ending import export, manifest_of
from softspec.train.result.scores import score_held_out
from softspec.train.watch.log import open_report
from softspec.train.watch.trackers import check_trackers


def train_ensemble(
    config: TrainConfig, resume: bool = False, overwrite: bool = False, overrides: Sequence[str] = ()
) -> Path:
    """Train K members jointly and write them as one ensemble directory; returns its path.

    Args:
        overrides: what `--set` said, which a resumed run is told again.
    Raises:
        UserError: settings, files or names that do not fit; found before the base model's weights are loaded.
        Interrupted: SIGINT or SIGTERM arrived; a checkpoint was written and `resume` continues from it.
        TrainingError: memory ran out, the loss is no longer finite, or the written adapters do not reload to the same
            numbers.
    """
    with unbroken_output(), advice_on_memory(config), _own_folder(config, resume, overwrite) as run:
        try:
            return _train(config, run, resume, overrides)
        except KeyboardInterrupt as error:
            raise Interrupted(_what_is_left(run), signal.SIGINT) from error


@contextmanager
def _own_folder(config: TrainConfig, resume: bool, overwrite: bool) -> Iterator[RunFolder]:
    """The run's folder, for no other run as long as this one lives."""
    run = open_run(config, resume, overwrite, is_main_process())
    try:
        yield run
    finally:
        run.close()


def _what_is_left(run: RunFolder) -> str:
    if not run.checkpoint.exists():
        return "stopped before the first checkpoint"
    return "stopped; go on from the last checkpoint with: softspec train CONFIG.yaml --resume"


def _train(config: TrainConfig, run: RunFolder, resume: bool, overrides: Sequence[str]) -> Path:
    """The story: check, read, prepare, take the steps, score, write."""
    check_trackers(config)
    processes = Processes()
    run.started_on = processes.of_main(run.started_on)
    spec = check_base(config)
    base = check_same_base(config, run if resume else None)
    examples, held_out = read_data(config, run.started_on)
    margins = read_margins(run.margins) if resume else None
    training = prepare(config, spec, examples, held_out, margins, base)
    if processes.is_main and not resume:
        tell_doubts(training)
    finished = start_or_resume(training, run, resume, overrides, base)
    steps = run_steps(training, run, finished)
    scores = held_out_scores(training)
    export(training, run, manifest_of(training, base, steps, scores))
    processes.wait()
    return config.output_dir


def check_base(config: TrainConfig) -> LoraSpec:
    """What of the base gets adapters; says what that comes to, and what serving will need, before weights are read."""
    if config.shard_base:
        check_shareable(Processes())
    skeleton = load_skeleton(config.base_model, config.model_revision)
    spec = _spec_of(config, skeleton)
    remarks = check_servable(config, skeleton)
    if is_main_process():
        print(what_is_adapted(spec, skeleton), file=sys.stderr)
        for remark in remarks:
            tell(remark)
    return spec


def check_same_base(config: TrainConfig, resumed: RunFolder | None) -> str:
    """The fingerprint of the base, which must be that of a resumed run; empty in a process that is not the main one.

    Raises:
        ConfigError: the run began with another base.
    """
    if not is_main_process():
        return ""
    found = fingerprint(config.base_model, config.model_revision)
    began = resumed.beginning if resumed else None
    if began and began.base != found:
        raise ConfigError(
            f"cannot resume: base_model '{config.base_model}' has other weights, another tokenizer or another chat "
            "template than the run began with; restore it, or give the same base elsewhere"
        )
    return found


def read_data(config: TrainConfig, started_on: date | None = None) -> tuple[Sequence[Unit], Sequence[Unit]]:
    """Training and held-out units of the objective, tokenised, on disk; held-out may be empty.

    One process of a node tokenises, and the others read what it wrote.
    """
    processes, folder = Processes(), config.output_dir.parent
    with processes.file_of_node(folder) as training, processes.file_of_node(folder) as held_out:
        processes.once_a_node(lambda: tokenise_data(config, started_on, training, held_out))
        return Store(training), Store(held_out) if config.eval_file else []


def tokenise_data(
    config: TrainConfig, started_on: date | None, training: IO[bytes], held_out: IO[bytes]
) -> None:
    """Write the training units, and the held-out ones if there are any, to a file each.

    Raises:
        DataError: a row that cannot be learnt as it would be served, or none.
        ConfigError: files, splits or a tokenizer that are not there.
    """
    check_choices(config)
    objective, overlap = objective_of(config), Overlap()
    tokenizer = load_tokenizer(config.base_model, config.model_revision)
    reading = Reading(
        tokenizer,
        end_of_turn_ids(tokenizer, config.base_model, config.model_revision),
        config.max_length,
        context_length(config.base_model, config.model_revision),
        config.long_rows,
        config.train_on,
        started_on,
        tell if is_main_process() else lambda line: None,
    )

    def write(
        data: str, split: str, note: Callable[[Iterable[Unit]], Iterator[Unit]], file: IO[bytes]
    ) -> None:
        rows = read_rows(data, split, config.dataset_config)
        units = note(objective.read(rows, replace(reading, notes=Notes())))
        bar = tqdm(units, desc=f"reading {data}", unit="example", delay=2, disable=not is_main_process())
        write_units(bar, file)

    write(config.train_file, config.dataset_train_split, overlap.training, training)
    if not config.eval_file:
        return
    write(config.eval_file, config.dataset_test_split, overlap.evaluation, held_out)
    if overlap.shared:
        reading.tell(f"{overlap.shared} of {overlap.held_out} held-out examples are in train_file too")


def check_names(config: TrainConfig) -> LoraSpec:
    """Fit target modules and layers to the base model's skeleton, without its weights."""
    return _spec_of(config, load_skeleton(config.base_model, config.model_revision))


def _spec_of(config: TrainConfig, skeleton: nn.Module) -> LoraSpec:
    return resolve_spec(
        skeleton, config.lora_r, config.lora_alpha, config.target_modules, config.layers_to_transform
    )


def prepare(
    config: TrainConfig,
    spec: LoraSpec,
    examples: Sequence[Unit],
    held_out: Sequence[Unit],
    margins: Margins | None = None,
    base: str = "",
) -> Training:
    """Look at the data, load the base, install the members.

    Args:
        margins: what the base is known to say.
        base: the fingerprint of the base, without which nothing is kept of it.
    """
    known = survey(examples, config.granularity == "group", config.train_file)
    place = (config.base_model, config.model_revision, config.dtype)
    processes = Processes()
    model = load_shared_base(*place, processes) if config.shard_base else load_base(*place, processes.device)
    return assemble(config, spec, model, known, examples, held_out, margins, base)


def assemble(
    config: TrainConfig,
    spec: LoraSpec,
    model: PreTrainedModel,
    known: Survey,
    examples: Sequence[Unit],
    held_out: Sequence[Unit],
    margins: Margins | None = None,
    base: str = "",
) -> Training:
    """Install new members and their optimizer in a base that has none; `known` is what the examples are known to be."""
    objective, processes = objective_of(config), Processes()
    members = Members(
        model,
        spec,
        config.num_members,
        config.seed,
        config.b_init_std,
        config.gradient_checkpointing,
        config.lora_dropout,
    )
    members.sharing = processes if config.shard_base else None
    optimizer = MembersAdamW(members.parameters(), config.learning_rate, config.weight_decay)
    order = ExampleOrder(config, len(examples), known.bundles)
    if processes.of_main(base):
        keep_frozen(config, members, processes, _asked_about(config, order, examples, held_out), base)
    return Training(
        config=config,
        objective=objective,
        processes=processes,
        members=members,
        optimizer=optimizer,
        examples=with_reference(objective, members, examples, processes, margins),
        held_out=with_reference(objective, members, held_out, processes, margins),
        survey=known,
        order=order,
        prior=prior_of(config, members, len(examples)),
        log_weights=uniform_log_weights(config.num_members).to(model.device),
        active_members=float(config.num_members),
        starvation=Starvation(config.num_members, patience_of(total_steps(config, order.steps_per_epoch))),
        early_stopping=EarlyStopping(config),
    )


def _asked_about(
    config: TrainConfig, order: ExampleOrder, examples: Sequence[Unit], held_out: Sequence[Unit]
) -> Iterator[Example]:
    """The completions that a run asks the members or the base about."""
    epoch = order.steps_per_epoch
    steps = range(epoch if config.objective == "dpo" else min(epoch, total_steps(config, epoch)))
    for unit in chain((examples[index] for step in steps for index in order.indices(step)), held_out):
        yield from unit.completions


def tell_doubts(training: Training) -> None:
    """Say why members cannot specialise on these data with these settings, if it can be told beforehand."""
    config, order, bundles = training.config, training.order, training.survey.bundles
    groups = config.examples_per_step / order.examples_per_piece if bundles else None
    for line in doubts(config, training.examples, groups, len(bundles) if bundles else None):
        tell(line)


def start_or_resume(
    training: Training, run: RunFolder, resume: bool, overrides: Sequence[str], base: str = ""
) -> int:
    """Make a fresh run folder, or take up the checkpoint in it; returns the number of finished steps.

    Raises:
        ConfigError: the checkpoint is damaged, or the run began with other settings, examples or, where they decide its
            end, held-out examples.
    """
    config, held_out = training.config, digest_of(training.held_out)
    training.processes.wait()  # until all have seen the folder as it was
    if not resume:
        if training.processes.is_main:
            run.clear(overrides, base, held_out)
            keep_margins(run.margins, training.examples, training.held_out)
        return 0
    step, state = load_checkpoint(run, config, training.survey.digest)
    began = run.beginning
    if config.early_stopping_patience and began and began.held_out != held_out:
        raise ConfigError(
            "cannot resume: eval_file gives other examples than the run began with, and they decide when it ends; "
            "restore it"
        )
    with read_whole(run.checkpoint):
        training.load_state_dict(state)
    return step


def run_steps(training: Training, run: RunFolder, finished: int) -> int:
    """Take all remaining steps, with report, held-out scores and checkpoints; returns how many the run has had.

    A step is first recorded, then saved if a checkpoint is due, and then told. With early stopping it leaves the
    members of the best evaluation.
    """
    config, total, stopping = training.config, training.total_steps, training.early_stopping
    done = finished
    teller = tell_at_once if training.processes.is_main else None
    with open_report(training, run, finished) as report, stop_on_signals(teller) as stop:
        while done < total and not stopping.is_over:
            with saved_on_error(training, run, done):
                facts = optimizer_step(training, done)
            done += 1
            with saved_on_error(training, run, done):
                scores = _evaluate(training, done)
                ended = done == total or stopping.is_over
                if report:
                    report.record(facts, scores, ended)
                signal_number = training.processes.largest(stop.signal_number or 0)
            if signal_number or _is_due(config.save_steps, done) or ended:
                save(training, run, done)
            if report:
                report.tell(facts, scores, ended)
            if signal_number:
                raise Interrupted(
                    f"stopped after step {done} of {total}; go on with: softspec train CONFIG.yaml --resume",
                    signal_number,
                )
    if stopping.best_members:
        training.load_members(stopping.best_members)
    return done


def _evaluate(training: Training, done: int) -> HeldOut | None:
    """The held-out scores after `done` steps, which early stopping takes note of; None where none are due."""
    stopping = training.early_stopping
    if not (_is_due(training.config.eval_steps, done) or (stopping.is_on and done == training.total_steps)):
        return None
    scores = held_out_scores(training)
    assert scores, "eval_steps needs an eval_file"
    stopping.observe(done, scores.mixture_nll, training.members_state)
    return scores


def held_out_scores(training: Training) -> HeldOut | None:
    """Scores of the held-out units under the present members; None without any."""
    if not training.held_out:
        return None
    config, members, processes = training.config, training.members, training.processes
    with advice_on_memory(config, "evaluation"):
        return score_held_out(config, members, training.held_out, training.log_weights, processes)


def _is_due(every: int | None, done: int) -> bool:
    return every is not None and done % every == 0
