"""The end of a run: from trained members to an ensemble directory in its place.

In: a `Training` after its last step. Out: the directory, with the run's log and curves. Takes no steps.
"""

import shutil

from softspec.artefact.manifest import BaseModelRef, Manifest
from softspec.errors import TrainingError
from softspec.train.loop.facts import HeldOut, as_json
from softspec.train.loop.folder import LOG_NAME, TENSORBOARD, RunFolder
from softspec.train.loop.state import Training
from softspec.train.result.export import check_reload, publish, storing, write_ensemble

RELOAD_CHECK_EXAMPLES = 2


def export(training: Training, run: RunFolder, manifest: Manifest) -> None:
    """Write the ensemble beside its destination, check it through stock PEFT, move it into place, drop the run.

    All processes of a run take part. The main one writes; those that share the base check with it, as it has no base
    of its own.

    Raises:
        TrainingError: its members are not what was trained; the ensemble is there all the same.
        StorageError: it cannot be written; the checkpoint stays.
    """
    is_main, output = training.processes.is_main, training.config.output_dir
    if is_main:
        _stage(training, run, manifest)
    training.processes.wait()
    doubt = _doubt(training, run) if is_main or training.members.sharing else None
    if not is_main:
        return
    with storing(output):
        publish(run.staged, output)
    run.remove()
    if doubt:
        raise TrainingError(f"{doubt}; it was written to '{output}' all the same, do not trust it") from doubt


def _stage(training: Training, run: RunFolder, manifest: Manifest) -> None:
    staged = run.staged
    with storing(staged):
        shutil.rmtree(staged, ignore_errors=True)
        write_ensemble(staged, training.members, manifest)
        shutil.copyfile(run.log, staged / LOG_NAME)
        if (run.path / TENSORBOARD).is_dir():  # not if it failed at once
            shutil.copytree(run.path / TENSORBOARD, staged / TENSORBOARD)


def _doubt(training: Training, run: RunFolder) -> Exception | None:
    """What speaks against the staged ensemble; whatever peft says of it, the run is over and its result is kept."""
    units = (training.held_out or training.examples)[:RELOAD_CHECK_EXAMPLES]
    examples = [unit.completions[0] for unit in units]
    try:
        check_reload(run.staged, training.members, examples, training.config.activation)
    except Exception as error:
        return error
    return None


def manifest_of(training: Training, base: str, steps: int, scores: HeldOut | None) -> Manifest:
    """What `ensemble.json` says of a run of so many steps on the base with this fingerprint."""
    config = training.config
    return Manifest(
        name=config.served_name,
        base_model=BaseModelRef(
            path=config.base_model,
            revision=config.model_revision,
            fingerprint=base,
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
            "schedule": config.schedule,
            **training.early_stopping.facts(),
            "settings": config.model_dump(
                mode="json", exclude={"base_model", "train_file", "eval_file", "output_dir"}
            ),
        },
        held_out=as_json(scores) if scores else {},
    )
