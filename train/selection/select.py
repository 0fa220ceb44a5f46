"""Selection of alpha and the number of members: the story of `softspec select`.

In: a `TrainConfig` and what is to be tried. Out: an ensemble directory with the journal of how it was chosen. Read
`select_ensemble` first.
"""

import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from softspec.console import tell, unbroken_output
from softspec.errors import ConfigError
from softspec.train.config import TrainConfig
from softspec.train.data.units import Unit
from softspec.train.loop.folder import LOCK_NAME, refuse_output
from softspec.train.loop.lock import FolderLock
from softspec.train.loop.margins import digest_of
from softspec.train.loop.memory import advice_on_memory
from softspec.train.loop.schedule import ExampleOrder, total_steps
from softspec.train.members.base import load_base
from softspec.train.processes import Processes
from softspec.train.run import check_base, check_same_base, read_data
from softspec.train.selection.finish import finish
from softspec.train.selection.journal import Journal
from softspec.train.selection.plan import FEWEST_STEPS, Plan, Wanted, plan_of
from softspec.train.selection.search import Search
from softspec.train.selection.split import deal
from softspec.train.selection.trials import Trials

HELD_OUT_SHARE = 0.2
"""The part of train_file that is held out where there is no eval_file."""
FREE_TO_CHANGE = {
    "base_model",
    "train_file",
    "eval_file",
    "output_dir",
    "name",
    "save_steps",
    "logging_steps",
}
"""Settings that may change when a selection goes on; the data have digests of their own."""


def select_ensemble(
    config: TrainConfig, wanted: Wanted, overwrite: bool = False
) -> tuple[Path, dict[str, Any]]:
    """Choose alpha and the number of members by held-out NLL, and write what was chosen as an ensemble directory.

    Returns:
        Its path, and what `selection.json` says.
    Raises:
        UserError: settings, files or numbers that do not fit; found before the base model's weights are loaded.
        Interrupted: a signal arrived; the same call goes on with what is finished.
        TrainingError: memory ran out, or not even one adapter could be trained.
    """
    wanted.check()
    config = _for_selection(config)
    refuse_output(config.output_dir, overwrite)
    with unbroken_output(), advice_on_memory(config), _own_journal(config) as journal:
        return _select(config, wanted, journal), journal.content


def _select(config: TrainConfig, wanted: Wanted, journal: Journal) -> Path:
    """The story: check, read, split, plan, search, score the final split once, write."""
    processes = Processes()
    if processes.count > 1:
        raise ConfigError("softspec select runs in one process: start it without torchrun or accelerate")
    _check_all(config, wanted)
    base = check_same_base(config, None)
    examples, selection, final = _parts(config, wanted)
    steps = total_steps(config, ExampleOrder(config, len(examples)).steps_per_epoch)
    plan = plan_of(config, wanted, steps)
    _begin(journal, config, wanted, plan, base, examples, selection, final)
    model = load_base(config.base_model, config.model_revision, config.dtype, processes.device)
    trials = Trials(config, model, base, examples, selection, journal)
    outcome = Search(plan, trials, journal).run()
    output = finish(trials, outcome, final, base)
    shutil.rmtree(journal.path, ignore_errors=True)
    return output


def _check_all(config: TrainConfig, wanted: Wanted) -> None:
    """Check every configuration, before data are read and weights are loaded.

    Raises:
        ConfigError: one could not be trained or served.
    """
    plan = plan_of(config, replace(wanted, budget=None), FEWEST_STEPS)
    for each in plan.ensembles:
        each.applied(config)
    for each in plan.single:
        check_base(each.applied(config))


def _for_selection(config: TrainConfig) -> TrainConfig:
    """The configuration without what has no meaning here.

    Raises:
        ConfigError: it asks for runs of different lengths, or routes nothing.
    """
    if config.early_stopping_patience is not None:
        raise ConfigError(
            "early_stopping_patience ends runs at different steps, but select compares them after the same: "
            "leave it out"
        )
    left_out = [key for key in ("eval_steps", "report_to") if getattr(config, key)]
    if left_out:
        tell(f"{' and '.join(left_out)} is left out: configurations are scored at steps of their own")
    return config.model_copy(update={"eval_steps": None, "report_to": ()})


@contextmanager
def _own_journal(config: TrainConfig) -> Iterator[Journal]:
    """The selection's folder, for no other process as long as this one lives."""
    folder = config.output_dir.with_name(config.output_dir.name + ".selection")
    lock = FolderLock(folder / LOCK_NAME)
    try:
        yield Journal(folder)
    finally:
        _drop_if_empty(folder)
        lock.close()


def _drop_if_empty(folder: Path) -> None:
    """Remove a folder in which nothing was begun."""
    if {path.name for path in folder.glob("*")} == {LOCK_NAME}:
        shutil.rmtree(folder)


def _parts(config: TrainConfig, wanted: Wanted) -> tuple[Sequence[Unit], Sequence[Unit], Sequence[Unit]]:
    """The units to train on, those to choose by, and those that are not touched before the end."""
    examples, held_out = read_data(config)
    whence = "eval_file"
    if not held_out:
        whence = f"the {HELD_OUT_SHARE:.0%} of train_file that is held out"
        kept, apart = deal(examples, config, HELD_OUT_SHARE, "train_file")
        examples, held_out = _chosen(examples, kept), _chosen(examples, apart)
        tell(f"no eval_file: {len(held_out)} of {len(kept) + len(apart)} examples of train_file are held out")
    choosing, last = deal(held_out, config, wanted.final_share, whence)
    tell(f"of {len(held_out)} held-out examples {len(choosing)} choose and {len(last)} are kept for the end")
    return examples, _chosen(held_out, choosing), _chosen(held_out, last)


def _chosen(units: Sequence[Unit], numbers: Sequence[int]) -> list[Unit]:
    return [units[number] for number in numbers]


def _begin(
    journal: Journal,
    config: TrainConfig,
    wanted: Wanted,
    plan: Plan,
    base: str,
    examples: Sequence[Unit],
    selection: Sequence[Unit],
    final: Sequence[Unit],
) -> None:
    """Take up the journal, or begin it; tells what the selection may cost."""
    settings = {**config.model_dump(mode="json", exclude=FREE_TO_CHANGE), "base": base}
    tried = {**asdict(plan), "rungs": plan.rungs, "most_adapter_steps": plan.most_adapter_steps}
    parts = {"train": examples, "selection": selection, "final": final}
    data = {name: {"examples": len(part), "sha256": digest_of(part)} for name, part in parts.items()}
    # As JSON has them, or a journal that is read again would differ.
    asked = {
        "final_share": wanted.final_share,
        "held_out_from": "eval_file" if config.eval_file else "train_file",
    }
    goes_on = journal.begin(*json.loads(json.dumps([settings, tried, {**data, **asked}])))
    print(
        f"{'going on with' if goes_on else 'beginning'} a selection of at most {plan.most_adapter_steps} "
        f"adapter-steps; one run of softspec train with {config.num_members} members and {plan.steps} steps has "
        f"{config.num_members * plan.steps}",
        file=sys.stderr,
    )
