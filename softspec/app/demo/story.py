"""The demo from data to served answers; `run_demo` reads like its summary.

In: a directory. Out: the content of `demo.json`, and in the directory an ensemble for `softspec serve` with the data
it was trained on and what it was compared with. Knows nothing of how training and serving work.
"""

import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from softspec.app.demo.facts import Statement, Thing, draw_statements, invent_things, write_rows
from softspec.app.demo.measure import measure, summarise_measured
from softspec.app.demo.served import ServingSettings, serve_and_ask
from softspec.app.smollm2 import local_base
from softspec.train.config import TrainConfig, parse_config
from softspec.train.loop.checkpoint import LOG_NAME, open_run
from softspec.train.run import train_ensemble

RESULTS_NAME = "demo.json"
TRAIN_NAME = "train.jsonl"
HELD_OUT_NAME = "held_out.jsonl"
PROBE_STEPS = 4
# All linear layers of the top third; with block activation one step takes about 3 s on two free cores.
TRAINING: Mapping[str, Any] = {
    "num_members": 4,
    "renyi_alpha": 0.8,
    "lora_r": 16,
    "lora_alpha": 32,
    "layers_to_transform": "top_third",
    "learning_rate": 2e-3,
    "lr_scheduler_type": "constant",
    "micro_batch_size": 8,
    "gradient_accumulation_steps": 1,
    "dtype": "float32",
    "logging_steps": 1,
}


@dataclass(frozen=True)
class DemoSettings:
    """How large the demo is.

    `base` is a checkpoint directory or a hub id; None converts the one of `softspec.app.smollm2`. The ensemble gets
    `max_steps` or as many steps as fit into `training_budget_s`; the others get the same number. `alpha_0` also
    trains the control, which takes as long again.
    """

    base: str | None = None
    seed: int = 0
    facts_per_example: int = 4
    train_examples: int = 2000
    held_out_examples: int = 160
    max_steps: int = 240
    training_budget_s: float = 720
    alpha_0: bool = False
    training: Mapping[str, Any] = field(default_factory=lambda: TRAINING)
    serving: ServingSettings = field(default_factory=ServingSettings)


class Stopwatch:
    """Seconds per named part of the demo."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def timing(self, part: str) -> Iterator[None]:
        started = time.monotonic()
        yield
        self.seconds[part] = round(time.monotonic() - started, 1)


def run_demo(output: Path, settings: DemoSettings | None = None) -> dict[str, Any]:
    """Train, measure, serve and ask; returns what `output/demo.json` holds.

    Raises:
        UserError: `output` exists and is no ensemble directory, or there is no base model.
        EngineError: the server did not start; what was measured until then is saved.
    """
    settings = settings or DemoSettings()
    watch = Stopwatch()
    with watch.timing("base_model"):
        base = settings.base or str(local_base())
    things = invent_things(settings.seed)
    results = train_and_measure(output, base, things, settings, watch)
    save(results, output)
    with watch.timing("serve_and_ask"):
        results |= serve_and_ask(output, base, things, settings.serving)
    save(results, output)
    return results


def train_and_measure(
    output: Path, base: str, things: Sequence[Thing], settings: DemoSettings, watch: Stopwatch
) -> dict[str, Any]:
    """The ensemble in `output`, what it is compared with in folders of it, and the scores of all."""
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{output.name}-", dir=output.parent) as folder:
        work = Path(folder)
        held_out = write_data(work, things, settings)
        config = training_config(base, work, output, settings)
        open_run(config, resume=False, overwrite=True)  # refuses a folder that is not ours before any work
        with watch.timing("probe"):
            config = config.model_copy(update={"max_steps": affordable_steps(config, work, settings)})
        with watch.timing("train_ensemble"):
            train_ensemble(config, overwrite=True)
        for name in (TRAIN_NAME, HELD_OUT_NAME):
            shutil.move(work / name, output / name)
    folders = {"ensemble": output, **train_others(config, output, settings, watch)}
    with watch.timing("measure"):
        measured = {key: measure(each, output / HELD_OUT_NAME, things) for key, each in folders.items()}
    return {
        **summarise_measured(measured, things, held_out),
        "renyi_alpha": config.renyi_alpha,
        "facts_per_example": settings.facts_per_example,
        "optimizer_steps": config.max_steps,
        "planned_steps": settings.max_steps,
        "seconds": watch.seconds,
    }


def save(results: Mapping[str, Any], output: Path) -> None:
    """Write `demo.json`."""
    (output / RESULTS_NAME).write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


def write_data(folder: Path, things: Sequence[Thing], settings: DemoSettings) -> list[Statement]:
    """What the sources say, in two files; returns the held-out part, whose questions do not occur in training."""
    facts, seed = settings.facts_per_example, settings.seed
    training = draw_statements(things, settings.train_examples, seed, facts)
    held_out = draw_statements(things, settings.held_out_examples, seed + 1, facts, exclude=training)
    write_rows(folder / TRAIN_NAME, (statement.row() for statement in training))
    write_rows(folder / HELD_OUT_NAME, (statement.row() for statement in held_out))
    return held_out


def training_config(base: str, data: Path, output: Path, settings: DemoSettings) -> TrainConfig:
    """What `softspec train` would read from a YAML file."""
    content = {
        **settings.training,
        "base_model": base,
        "train_file": str(data / TRAIN_NAME),
        "output_dir": str(output),
        "max_steps": settings.max_steps,
        "seed": settings.seed,
    }
    return parse_config(content, source="softspec demo", folder=Path())


def affordable_steps(config: TrainConfig, work: Path, settings: DemoSettings) -> int:
    """Time a few steps and see how many fit into the training budget; at most the planned number."""
    probe = config.model_copy(update={"output_dir": work / "probe", "max_steps": PROBE_STEPS})
    log = train_ensemble(probe) / LOG_NAME
    seconds = [json.loads(line)["seconds"] for line in log.read_text(encoding="utf-8").splitlines()]
    # The first step also pays for what is allocated once.
    per_step = statistics.median(seconds[1:])
    return max(1, min(settings.max_steps, int(settings.training_budget_s / per_step)))


def train_others(
    config: TrainConfig, output: Path, settings: DemoSettings, watch: Stopwatch
) -> dict[str, Path]:
    """The models that the ensemble is compared with, trained on the same examples for as many steps."""
    others: dict[str, dict[str, Any]] = {"single": {"num_members": 1}}
    if settings.alpha_0:
        others["alpha_0"] = {"renyi_alpha": 0.0}
    folders = {}
    for key, changes in others.items():
        changes |= {"train_file": str(output / TRAIN_NAME), "output_dir": output / key}
        with watch.timing(f"train_{key}"):
            folders[key] = train_ensemble(config.model_copy(update=changes))
    return folders
