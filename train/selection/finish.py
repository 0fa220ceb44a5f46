"""The end of a selection: the untouched part of the held-out units is scored, and the chosen members are written.

In: an `Outcome`, and the trials that have its members. Out: what the final units say, and an ensemble directory.
Chooses nothing any more.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from softspec.artefact.manifest import Manifest
from softspec.train.data.units import Unit
from softspec.train.loop.folder import LOG_NAME, SELECTION_NAME, TENSORBOARD
from softspec.train.loop.margins import with_reference
from softspec.train.loop.state import Training
from softspec.train.members.members import Members
from softspec.train.result.ending import RELOAD_CHECK_EXAMPLES, manifest_of
from softspec.train.result.export import check_reload, publish, storing, write_ensemble
from softspec.train.run import held_out_scores
from softspec.train.selection.rule import Candidate, described
from softspec.train.selection.search import Outcome
from softspec.train.selection.trials import Trials
from softspec.train.selection.units import Frame, frame_of, score

STAGED_NAME = "ensemble"


def finish(trials: Trials, outcome: Outcome, final: Sequence[Unit], base: str) -> Path:
    """Score the final units under the chosen candidate and the other one, say what they show, write the ensemble.

    Raises:
        TrainingError: the written adapters do not reload to the same numbers.
        StorageError: the ensemble cannot be written.
    """
    frame, journal = frame_of(final, trials.config), trials.journal
    other = _final_losses(trials, outcome.other, final, frame) if outcome.other else None
    with trials.training(outcome.chosen.configuration) as training:
        _keep_chosen(trials, training, outcome.chosen)
        training.held_out = _with_reference(training, final)
        losses = _losses(training, outcome.chosen, frame)
        journal.content["chosen"] = _facts(outcome, trials)
        journal.content["final"] = _final_facts(outcome, losses, other, frame)
        journal.learn(_sentence(outcome, journal.content["final"]))
        return _write(trials, training, _manifest(trials, training, outcome, base))


def _final_losses(trials: Trials, candidate: Candidate, final: Sequence[Unit], frame: Frame) -> Tensor:
    """A candidate's losses on the final units, by cluster, (J,)."""
    with trials.training(candidate.configuration) as training:
        _keep_chosen(trials, training, candidate)
        training.held_out = _with_reference(training, final)
        return _losses(training, candidate, frame)


def _losses(training: Training, candidate: Candidate, frame: Frame) -> Tensor:
    table = score(training.members, training.held_out, training.config, frame)
    return frame.losses(table, candidate.pruned.log_weights)


def _with_reference(training: Training, final: Sequence[Unit]) -> Sequence[Unit]:
    return with_reference(training.objective, training.members, final, training.processes)


def _keep_chosen(trials: Trials, training: Training, candidate: Candidate) -> None:
    """Take up the configuration's last checkpoint, and leave only the candidate's members, with their weights."""
    trials.restore(training, candidate.configuration)
    trained, kept = training.members, candidate.pruned.members
    states = [trained.adapter_state(member) for member in kept]
    trained.uninstall()
    training.members = Members(trained.model, trained.spec, len(kept))
    for member, state in enumerate(states):
        training.members.load_adapter(member, state)
    training.log_weights = candidate.pruned.log_weights.to(training.log_weights)
    training.config = training.config.model_copy(update={"num_members": len(kept)})


def _manifest(trials: Trials, training: Training, outcome: Outcome, base: str) -> Manifest:
    """The manifest of a run of the chosen configuration; its held-out scores are those of the final units."""
    chosen = outcome.chosen
    manifest = manifest_of(training, base, chosen.configuration.steps, held_out_scores(training))
    settings = {**manifest.training["settings"], "num_members": chosen.configuration.num_members}
    selection = {**trials.journal.content["chosen"], "final": trials.journal.content["final"]}
    return manifest.model_copy(
        update={"training": {**manifest.training, "settings": settings, "selection": selection}}
    )


def _facts(outcome: Outcome, trials: Trials) -> dict[str, Any]:
    chosen = outcome.chosen
    return {
        "configuration": chosen.configuration.name,
        "renyi_alpha": chosen.configuration.renyi_alpha,
        "num_members": chosen.num_members,
        "kept_members": list(chosen.pruned.members),
        "weights": chosen.pruned.log_weights.exp().tolist(),
        "rank": chosen.configuration.shape.rank,
        "layers": chosen.configuration.shape.layers,
        "steps": chosen.configuration.steps,
        "selection_nll": trials.frame.mean(chosen.pruned.losses),
        "why": outcome.why,
    }


def _final_facts(outcome: Outcome, losses: Tensor, other: Tensor | None, frame: Frame) -> dict[str, Any]:
    """What the final units say; `gain` is how much better the ensemble is than one adapter, nats per example."""
    facts: dict[str, Any] = {
        "examples": frame.sizes.sum().item(),
        "clusters": len(frame.sizes),
        "chosen": {"what": described(outcome.chosen), "nll": frame.mean(losses)},
        "other": None,
        "gain": None,
    }
    if other is None or outcome.other is None:
        return facts
    one, ensemble = (other, losses) if outcome.chosen.num_members > 1 else (losses, other)
    low, high = frame.interval(one, ensemble)
    gap = frame.difference(one, ensemble)
    facts["other"] = {"what": described(outcome.other), "nll": frame.mean(other)}
    facts["gain"] = {
        "value": gap.value,
        "low": low,
        "high": high,
        "n": len(frame.sizes),
        "estimator": "paired difference of NLL per example, 95 % bootstrap over clusters",
    }
    return facts


def _sentence(outcome: Outcome, final: dict[str, Any]) -> str:
    """What it comes to, for whoever reads one line only."""
    gain, is_ensemble = final["gain"], outcome.chosen.num_members > 1
    if gain is None:
        return "one adapter is enough here: no ensemble could be compared with it"
    told = f"{gain['value']:+.4f} nats per example, 95 % from {gain['low']:+.4f} to {gain['high']:+.4f}"
    if not is_ensemble:
        return (
            f"one adapter is enough here: what {final['other']['what']} gains on it on the final split, "
            f"which nothing was chosen by, is {told}"
        )
    doubt = "" if gain["low"] > 0 else "; that is not clear of zero, so one adapter may be enough"
    what = final["chosen"]["what"]
    return f"on the final split, which nothing was chosen by, {what} gain {told} on one adapter{doubt}"


def _write(trials: Trials, training: Training, manifest: Manifest) -> Path:
    """Write the ensemble beside its place, with the journal, check it through stock PEFT, and move it there."""
    journal, output = trials.journal, trials.config.output_dir
    staged, name = journal.path / STAGED_NAME, journal.content["chosen"]["configuration"]
    run = journal.path / name
    with storing(staged):
        shutil.rmtree(staged, ignore_errors=True)
        write_ensemble(staged, training.members, manifest)
        journal.write()
        shutil.copyfile(journal.path / SELECTION_NAME, staged / SELECTION_NAME)
        if (run / LOG_NAME).exists():
            shutil.copyfile(run / LOG_NAME, staged / LOG_NAME)
        if (run / TENSORBOARD).is_dir():
            shutil.copytree(run / TENSORBOARD, staged / TENSORBOARD)
    units = training.held_out[:RELOAD_CHECK_EXAMPLES]
    check_reload(
        staged, training.members, [unit.completions[0] for unit in units], training.config.activation
    )
    with storing(output):
        publish(staged, output)
    return output
