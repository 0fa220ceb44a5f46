"""Fine-tuning of K members under one alpha-Renyi loss: the story of `softspec train`, for completions and preferences.

In: a `TrainConfig`. Out: an ensemble directory. Read `train_ensemble` first; the other functions are its verbs.
"""

import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import torch
from tqdm import tqdm

from softspec.artefact.base import context_length, end_of_turn_ids, fingerprint
from softspec.artefact.manifest import BaseModelRef, Manifest
from softspec.errors import Interrupted
from softspec.maths.mixture import uniform_log_weights
from softspec.train.config import TrainConfig
from softspec.train.data.choices import check_choices
from softspec.train.data.notes import Notes
from softspec.train.data.overlap import Overlap
from softspec.train.data.reading import Reading, on_stderr
from softspec.train.data.sources import read_rows
from softspec.train.data.store import Store
from softspec.train.data.survey import survey
from softspec.train.data.units import Unit
from softspec.train.loop.checkpoint import (
    LOG_NAME,
    RunFolder,
    load_checkpoint,
    open_run,
    save_checkpoint,
    stop_on_signals,
)
from softspec.train.loop.facts import HeldOut, as_json
from softspec.train.loop.health import Starvation, patience_of
from softspec.train.loop.schedule import ExampleOrder, total_steps
from softspec.train.loop.state import Training
from softspec.train.loop.step import optimizer_step
from softspec.train.loop.stopping import EarlyStopping
from softspec.train.members.base import load_base, load_skeleton, load_tokenizer
from softspec.train.members.members import Members
from softspec.train.members.spec import LoraSpec, resolve_spec
from softspec.train.objective.objective import objective_of
from softspec.train.objective.prior import prior_of
from softspec.train.processes import Processes, is_main_process
from softspec.train.result.export import check_reload, publish, write_ensemble
from softspec.train.result.scores import score_held_out
from softspec.train.watch.log import open_report
from softspec.train.watch.trackers import TENSORBOARD, check_trackers

RELOAD_CHECK_EXAMPLES = 2


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
    run = open_run(config, resume, overwrite)
    check_trackers(config)
    started = start_of(run, resume)
    spec = check_names(config)
    examples, held_out = read_data(config, started)
    training = prepare(config, spec, examples, held_out)
    finished = start_or_resume(training, run, resume, overrides, started)
    steps = run_steps(training, run, finished)
    scores = held_out_scores(training)
    if training.processes.is_main:
        staged = export(training, run, steps, scores)
        publish(staged, config.output_dir)
        run.remove()
    training.processes.wait()
    return config.output_dir


def start_of(run: RunFolder, resume: bool) -> datetime:
    """When the run began, the same in all its processes; templates with a clock are given this date."""
    if resume:
        return run.started
    return datetime.fromtimestamp(Processes().largest(int(time.time())))


def read_data(config: TrainConfig, started: datetime | None = None) -> tuple[Sequence[Unit], Sequence[Unit]]:
    """Training and held-out units of the objective, tokenised, on disk; held-out may be empty."""
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
        started,
        on_stderr if is_main_process() else lambda line: None,
    )

    def read(data: str, split: str, note: Callable[[Iterable[Unit]], Iterator[Unit]]) -> Sequence[Unit]:
        rows = read_rows(data, split, config.dataset_config)
        units = note(objective.read(rows, replace(reading, notes=Notes())))
        bar = tqdm(units, desc=f"reading {data}", unit="example", delay=2, disable=not is_main_process())
        return Store(bar, config.output_dir.parent)

    examples = read(config.train_file, config.dataset_train_split, overlap.training)
    if not config.eval_file:
        return examples, []
    held_out = read(config.eval_file, config.dataset_test_split, overlap.evaluation)
    if overlap.shared:
        reading.tell(
            f"softspec: {overlap.shared} of {overlap.held_out} held-out examples are in train_file too"
        )
    return examples, held_out


def check_names(config: TrainConfig) -> LoraSpec:
    """Fit target modules and layers to the base model's skeleton, without its weights."""
    skeleton = load_skeleton(config.base_model, config.model_revision)
    return resolve_spec(
        skeleton, config.lora_r, config.lora_alpha, config.target_modules, config.layers_to_transform
    )


def prepare(
    config: TrainConfig, spec: LoraSpec, examples: Sequence[Unit], held_out: Sequence[Unit]
) -> Training:
    """Load the base, install the members and their optimizer."""
    objective, processes = objective_of(config), Processes()
    known = survey(examples, config.granularity == "group", config.train_file)
    model = load_base(config.base_model, config.model_revision, config.dtype, processes.device)
    members = Members(
        model, spec, config.num_members, config.seed, config.b_init_std, config.gradient_checkpointing
    )
    optimizer = torch.optim.AdamW(
        members.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
    )
    order = ExampleOrder(config, len(examples), known.bundles)
    return Training(
        config=config,
        objective=objective,
        processes=processes,
        members=members,
        optimizer=optimizer,
        examples=objective.with_reference(members, examples, processes),
        held_out=objective.with_reference(members, held_out, processes),
        survey=known,
        order=order,
        prior=prior_of(config, members, len(examples)),
        log_weights=uniform_log_weights(config.num_members).to(model.device),
        active_members=float(config.num_members),
        starvation=Starvation(config.num_members, patience_of(total_steps(config, order.steps_per_epoch))),
        early_stopping=EarlyStopping(config),
    )


def start_or_resume(
    training: Training, run: RunFolder, resume: bool, overrides: Sequence[str], started: datetime
) -> int:
    """Make a fresh run folder, or take up the checkpoint in it; returns the number of finished steps."""
    training.processes.wait()  # until all have seen the folder as it was
    if not resume:
        if training.processes.is_main:
            run.clear(overrides, started)
        return 0
    step, state = load_checkpoint(run, training.config, training.survey.digest)
    training.load_state_dict(state)
    return step


def run_steps(training: Training, run: RunFolder, finished: int) -> int:
    """Take all remaining steps, with report, held-out scores and checkpoints; returns how many the run has had.

    With early stopping it leaves the members of the best evaluation.
    """
    config, total, stopping = training.config, training.total_steps, training.early_stopping
    done = finished
    with open_report(training, run, finished) as report, stop_on_signals() as stop:
        while done < total and not stopping.is_over:
            facts = optimizer_step(training, done)
            done += 1
            if report:
                report.step(facts)
            if _is_due(config.eval_steps, done) or (stopping.is_on and done == total):
                scores = held_out_scores(training)
                assert scores, "eval_steps needs an eval_file"
                stopping.observe(done, scores.mixture_nll, training.members_state)
                if report:
                    report.evaluation(done, scores)
            ended = done == total or stopping.is_over
            if report and ended:
                report.end(done)
            signal_number = training.processes.largest(stop.signal_number or 0)
            if signal_number or _is_due(config.save_steps, done) or ended:
                save(training, run, done)
            if signal_number:
                raise Interrupted(
                    f"stopped after step {done} of {total}; go on with: softspec train CONFIG.yaml --resume",
                    signal_number,
                )
    if stopping.best_members:
        training.load_members(stopping.best_members)
    return done


def save(training: Training, run: RunFolder, done: int) -> None:
    """Write a checkpoint after `done` steps; returns once it is there."""
    if training.processes.is_main:
        save_checkpoint(run, done, training.state_dict(), training.config, training.survey.digest)
    training.processes.wait()


def held_out_scores(training: Training) -> HeldOut | None:
    """Scores of the held-out units under the present members; None without any."""
    if not training.held_out:
        return None
    config, members, processes = training.config, training.members, training.processes
    return score_held_out(config, members, training.held_out, training.log_weights, processes)


def export(training: Training, run: RunFolder, steps: int, scores: HeldOut | None) -> Path:
    """Write the ensemble beside its destination and check it through stock PEFT; returns the written folder."""
    staged = run.staged
    shutil.rmtree(staged, ignore_errors=True)
    write_ensemble(staged, training.members, manifest_of(training, steps, scores))
    checked = [
        unit.completions[0] for unit in (training.held_out or training.examples)[:RELOAD_CHECK_EXAMPLES]
    ]
    check_reload(staged, training.members, checked, training.config.activation)
    shutil.copyfile(run.log, staged / LOG_NAME)
    if (run.path / TENSORBOARD).is_dir():  # not if it failed at once
        shutil.copytree(run.path / TENSORBOARD, staged / TENSORBOARD)
    return staged


def manifest_of(training: Training, steps: int, scores: HeldOut | None) -> Manifest:
    """What `ensemble.json` says of a run of so many steps."""
    config = training.config
    return Manifest(
        name=config.served_name,
        base_model=BaseModelRef(
            path=config.base_model,
            revision=config.model_revision,
            fingerprint=fingerprint(config.base_model, config.model_revision),
        ),
        num_members=config.num_members,
        log_weights=tuple(training.log_weights.tolist()),
        renyi_alpha=config.renyi_alpha,
        objective=config.objective,
        granularity=config.granularity,
        weights_rule=config.weights_rule,
        activation=config.activation,
        training={
            "examples": len(training.examples),
            "examples_sha256": training.survey.digest,
            "steps": steps,
            **training.early_stopping.facts(),
            "settings": config.model_dump(
                mode="json", exclude={"base_model", "train_file", "eval_file", "output_dir"}
            ),
        },
        held_out=as_json(scores) if scores else {},
    )


def _is_due(every: int | None, done: int) -> bool:
    return every is not None and done % every == 0
