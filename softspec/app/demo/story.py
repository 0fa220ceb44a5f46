"""The demo from data to served answers; `run_demo` reads like its summary.

In: a directory. Out: the content of `demo.json`, and in the directory an ensemble for `softspec serve` with the data
it was trained on and what it was compared with. Knows nothing of how training and serving work.
"""

import os
import sys
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

from softspec.app.demo import report
from softspec.app.demo.facts import draw_statements, invent_things, write_rows
from softspec.app.demo.folder import (
    HELD_OUT_NAME,
    MEASURED_NAME,
    SERVER_LOG_NAME,
    TRAIN_NAME,
    open_folder,
    read_json,
    write_json,
)
from softspec.app.demo.measure import Measured, measure, summarise_measured
from softspec.app.demo.served import Questioner, Serve, connect, serving
from softspec.app.demo.settings import DemoSettings
from softspec.app.interruption import interruptible
from softspec.app.smollm2 import local_base
from softspec.artefact.manifest import MANIFEST_NAME, load_manifest
from softspec.train.config import TrainConfig, parse_config
from softspec.train.loop.folder import run_folder
from softspec.train.run import train_ensemble

Show = Callable[[str], object]
COMPARED: dict[str, dict[str, Any]] = {"single": {"num_members": 1}, "alpha_0": {"renyi_alpha": 0.0}}
"""What the ensemble is compared with, and where its recipe differs; data, steps, rank and layers are the same."""


def print_part(text: str) -> None:
    """A part of the report on stdout, at once."""
    print(text, end="\n\n", flush=True)


def run_demo(
    output: Path,
    settings: DemoSettings | None = None,
    compare: bool = False,
    overwrite: bool = False,
    show: Show = print_part,
    serve: Serve = serving,
) -> dict[str, Any]:
    """Train, serve, ask and measure; with `compare` also what the ensemble is compared with.

    What is in `output` already is not done again. Every part of the report goes to `show` as soon as it is known.

    Returns:
        What `output/demo.json` holds.
    Raises:
        UserError: `output` holds something else or a demo of other settings, or there is no base model.
        EngineError: the server did not start.
        Interrupted: SIGINT or SIGTERM came; the same call goes on from there.
    """
    demo = Demo(output, settings or DemoSettings(), overwrite)
    if demo.folder.was_there:
        finished = ", ".join(demo.finished) or "nothing"
        print(f"softspec: '{output}' was begun before; finished there: {finished}", file=sys.stderr)
    with interruptible(f"stopped; the same command goes on from there, in '{output}'"):
        demo.train("ensemble")
        demo.ask(show, serve)
        demo.measure("ensemble")
        show(report.format_disagreement(demo.results))
        if compare and not demo.is_compared:
            for model in COMPARED:
                demo.train(model)
                demo.measure(model)
            show(report.format_disagreement(demo.results))
        show(report.format_scores(demo.results))
        show(report.format_verdict(demo.results))
    return demo.results


class Demo:
    """The parts of one demo; each does nothing where its result is in the folder already."""

    def __init__(self, output: Path, settings: DemoSettings, overwrite: bool = False) -> None:
        """Open the folder and write the data, which follow from the settings."""
        self.settings = settings
        self.folder = open_folder(output, settings, overwrite)
        self.things = invent_things(settings.seed)
        facts, seed = settings.facts_per_example, settings.seed
        training = draw_statements(self.things, settings.train_examples, seed, facts)
        # Their questions do not occur in training.
        self.held_out = draw_statements(
            self.things, settings.held_out_examples, seed + 1, facts, exclude=training
        )
        write_rows(output / TRAIN_NAME, (statement.row() for statement in training))
        write_rows(output / HELD_OUT_NAME, (statement.row() for statement in self.held_out))

    @cached_property
    def base(self) -> str:
        """The base's directory or hub id; the default one is converted on first use."""
        with self.folder.timing("base_model"):
            return self.settings.base or str(local_base())

    @property
    def results(self) -> dict[str, Any]:
        """What `demo.json` holds so far."""
        return self.folder.results

    @property
    def finished(self) -> list[str]:
        """The parts whose results are there."""
        parts = {
            "training": (self.folder.path / MANIFEST_NAME).is_file(),
            "answers": not self.folder.lacks("policy"),
            "measurement": not self.folder.lacks("mutual_information"),
            "comparison": self.is_compared,
        }
        return [part for part, is_there in parts.items() if is_there]

    @property
    def is_compared(self) -> bool:
        """Whether everything in `COMPARED` has been measured."""
        return all((self._place(model) / MEASURED_NAME).is_file() for model in COMPARED)

    def train(self, model: str) -> None:
        """Train the ensemble or one of `COMPARED`, from its last checkpoint if there is one."""
        trained, place = self.folder.path / model, self._place(model)
        if not (place / MANIFEST_NAME).is_file() and not (trained / MANIFEST_NAME).is_file():
            config = self._config(model, trained)
            with self.folder.timing(f"train_{model}"):
                train_ensemble(config, resume=run_folder(config).checkpoint.is_file())
        if trained != place and trained.is_dir():
            move_into(trained, place)

    def ask(self, show: Show, serve: Serve) -> None:
        """Serve the ensemble and ask about every thing; the first answers are shown before the others are asked for."""
        path, settings = self.folder.path, self.settings.serving
        if self.folder.lacks("policy"):
            with (
                self.folder.timing("serve_and_ask"),
                serve(path, self.base, settings, path / SERVER_LOG_NAME) as url,
                connect(url) as client,
            ):
                questioner = Questioner(client, load_manifest(path).name, settings.policy)
                self.folder.record(answers=questioner.one_of_each_kind(self.things))
                show(report.format_answers(self.results["answers"]))
                self.folder.record(policy={**settings.policy, "withheld": questioner.withheld(self.things)})
        else:
            show(report.format_answers(self.results["answers"]))
        show(report.format_policy(self.results["policy"]))

    def measure(self, model: str) -> None:
        """Score a trained model on held-out statements and on questions, beside the others there are."""
        file = self._place(model) / MEASURED_NAME
        if not file.is_file():
            with self.folder.timing("measure"):
                found = measure(file.parent, self.base, self.folder.path / HELD_OUT_NAME, self.things)
            write_json(file, found.to_json())
        files = {each: self._place(each) / MEASURED_NAME for each in ("ensemble", *COMPARED)}
        measured = {
            each: Measured.from_json(read_json(file)) for each, file in files.items() if file.is_file()
        }
        self.folder.record(**summarise_measured(measured, self.things, self.held_out), **self._facts())

    def _facts(self) -> dict[str, Any]:
        """What the report says of the training beside its results."""
        manifest = load_manifest(self.folder.path)
        steps = manifest.training["steps"]
        return {
            "renyi_alpha": manifest.renyi_alpha,
            "facts_per_example": self.settings.facts_per_example,
            "optimizer_steps": steps,
            "planned_steps": steps,  # earlier versions ended when their time was over
        }

    def _place(self, model: str) -> Path:
        """Where a trained model belongs: the ensemble is the folder itself, so that one can serve it by its name."""
        return self.folder.path if model == "ensemble" else self.folder.path / model

    def _config(self, model: str, trained: Path) -> TrainConfig:
        """What `softspec train` would read from a YAML file."""
        content = {
            **self.settings.recipe,
            "base_model": self.base,
            "train_file": str(self.folder.path / TRAIN_NAME),
            "output_dir": str(trained),
            "name": self._place(model).name,
            "seed": self.settings.seed,
            **COMPARED.get(model, {}),
        }
        return parse_config(content, source="softspec demo", folder=Path())


def move_into(directory: Path, place: Path) -> None:
    """Move a trained ensemble's files into a folder that holds others; its manifest last, by which it is known."""
    for entry in sorted(directory.iterdir(), key=lambda entry: entry.name == MANIFEST_NAME):
        os.replace(entry, place / entry.name)
    directory.rmdir()
