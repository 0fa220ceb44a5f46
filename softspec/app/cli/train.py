"""`softspec train`: an ensemble from a YAML file."""

import sys
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from softspec.console import unbroken_output

app = App(
    "train",
    help_epilogue="""\
Examples:
  softspec train my.yaml
  softspec train my.yaml --set renyi_alpha=0.5 --set activation.block_size=64""",
)


@app.default
def train(
    config: Path,
    /,
    *,
    resume: bool = False,
    overwrite: bool = False,
    overrides: Annotated[tuple[str, ...], Parameter(name="--set", metavar="KEY=VALUE")] = (),
) -> None:
    """Train an ensemble and say how to serve it.

    Args:
        config: YAML file; relative paths in it are relative to it
        resume: go on from the checkpoint of an interrupted run, with the --set it began with
        overwrite: replace the ensemble in output_dir
        overrides: in place of what the file says; may be given several times
    """
    with unbroken_output():  # a run does not end because nobody reads what it says
        _train(config, resume, overwrite, overrides)


def _train(config: Path, resume: bool, overwrite: bool, overrides: tuple[str, ...]) -> None:
    from softspec.train.config import dump_config, load_config, pinned

    settings = load_config(config, overrides)  # before the seconds in which training is imported

    from softspec.app.cli.progress import hide_foreign_progress
    from softspec.train.loop.folder import run_folder
    from softspec.train.processes import is_main_process, leave_others
    from softspec.train.run import train_ensemble

    hide_foreign_progress()
    if resume:
        settings = load_config(config, [*run_folder(settings).overrides, *overrides])
    if is_main_process():
        print(dump_config(settings), file=sys.stderr)
    output = train_ensemble(settings, resume, overwrite, [pinned(override) for override in overrides])
    if is_main_process():
        print(f"wrote {output}; serve it with: softspec serve {output}")
    leave_others()
