"""The run of `softspec bench train`: all ways in all cells, alternating, measured on this machine.

In: settings and a base. Out: a JSON document, rewritten after every repeat. Runs no model itself: every way has a
process of its own.
"""

import shlex
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self, TypeVar

import torch
from torch import Tensor
from tqdm import tqdm

from softspec.app.bench.core import machine
from softspec.app.bench.core.document import Results, interruptible
from softspec.app.bench.core.layers import adapted_layers
from softspec.app.bench.core.spread import Summary
from softspec.app.bench.training.material import base_with_weights
from softspec.app.bench.training.settings import JOINT, REGIMES, WAYS, BenchSettings, Cell
from softspec.app.bench.training.worker import Worker
from softspec.app.outputs import check_output
from softspec.errors import BenchError, WorkerOutOfMemory
from softspec.train.members.base import load_skeleton

T = TypeVar("T")
SUMMARY = Summary(
    measures=("step_s", "tokens_per_s", "peak_bytes", "added_bytes"),
    compared=("step_s", "peak_bytes", "added_bytes"),
    pairs=tuple((way, "softspec") for way in WAYS if way != "softspec"),
)
TOLERANCE = 1e-3
"""Largest relative difference of gradients, in float32."""


@dataclass(frozen=True)
class Sample:
    """What was measured of one way in one repeat of one cell.

    step_s: seconds of an optimizer step. tokens_per_s: prompt and completion tokens of the examples, each counted
    once whatever K. peak_bytes: on CPUs resident in the process, on a GPU allocated by torch; added_bytes: without
    the base's weights and the libraries. routing: the mean over steps of what softspec tells.
    """

    repeat: int
    place: int
    step_s: float
    tokens_per_s: float
    peak_bytes: int
    added_bytes: int
    routing: dict[str, float] | None


def bench_train(base: str | None, output: Path, settings: BenchSettings) -> dict[str, Any]:
    """Measure, write `output`, and return what it holds.

    Args:
        base: a checkpoint directory or a hub id; a directory without weights gets random ones; None is
            SmolLM2-135M-Instruct.
    Raises:
        UserError: the base or a setting is wrong.
        BenchError: gradients differ between ways. WorkerError: a way cannot be run.
        Interrupted: by Ctrl-C; the document holds the repeats so far.
    """
    check_output(output)
    with tempfile.TemporaryDirectory(prefix="softspec-bench-") as scratch, interruptible(output):
        checkpoint = base_with_weights(base, Path(scratch), settings.seed)
        # Says in one line what is wrong with the base, or with --layers for it.
        layers = adapted_layers(load_skeleton(checkpoint), settings.layers)
        print_plan(settings)
        facts = describe_run(checkpoint, settings)
        facts["model"] |= {
            "base": Path(base or checkpoint).name,
            "weights": "random" if checkpoint == scratch else "loaded",
            "adapted_layers": layers,
        }
        results = Results(output, facts, SUMMARY)
        costs = {
            cell: cell.members * (cell.prompt_tokens + cell.completion_tokens) for cell in settings.cells
        }
        with tqdm(
            total=settings.repeats * sum(costs.values()),
            bar_format="{desc}{percentage:3.0f}%|{bar}| {elapsed}<{remaining}",
            file=sys.stderr,
        ) as bar:
            for cell in settings.cells:
                with Crew(checkpoint, cell, settings, results.document, bar) as crew:
                    for _ in measure_cell(crew, cell, settings, results):
                        bar.update(costs[cell])
        results.write(complete=True)
        return results.document


class Crew:
    """The workers of a cell by way; one that runs out of memory is left out from then on."""

    def __init__(
        self, base: str, cell: Cell, settings: BenchSettings, document: dict[str, Any], bar: "tqdm[Any]"
    ) -> None:
        self._cell = cell
        self._bar = bar
        self._left_out: list[str] = document["left_out"]
        weights = document["model"]["parameters"] * getattr(torch, document["dtype"]).itemsize
        self.workers = {way: Worker(way, base, weights, cell, settings) for way in settings.measured_ways}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self.workers.values():
            worker.close()

    def ask(self, way: str, question: Callable[[Worker], T]) -> T | None:
        """What the way's worker answers; None where the way is, or is now, left out."""
        if way not in self.workers:
            return None
        self._bar.set_description(f"{self._cell}: {way}")
        try:
            return question(self.workers[way])
        except WorkerOutOfMemory as error:
            self._left_out.append(f"{self._cell}: {error}")
            self.workers.pop(way).close()
            return None


def measure_cell(crew: Crew, cell: Cell, settings: BenchSettings, results: Results) -> Iterator[None]:
    """Check, warm up and measure; yields after every repeat, when the document is on disk."""
    for way in settings.measured_ways:
        crew.ask(way, Worker.wait_until_loaded)
    answers = ((way, crew.ask(way, Worker.gradients)) for way in JOINT)
    differences = gradient_differences((way, found) for way, found in answers if found is not None)
    for way in settings.measured_ways:
        crew.ask(way, lambda worker: worker.take(1))
    results.begin(cell, list(crew.workers), gradient_differences=differences)
    tokens = settings.examples_per_step * (cell.prompt_tokens + cell.completion_tokens)
    for repeat in range(settings.repeats):
        for place, way in enumerate(settings.order(cell, repeat)):
            found = crew.ask(way, lambda worker: worker.take(settings.steps))
            if found is not None:
                rate = tokens / found["step_s"]
                results.add(cell, way, Sample(repeat=repeat, place=place, tokens_per_s=rate, **found))
        results.write()
        yield


def gradient_differences(found: Iterable[tuple[str, dict[str, Tensor]]]) -> dict[str, float]:
    """How far the gradients of each way are from those of the first one, by `way/way`.

    The largest distance of a member's gradient, relative to the largest gradient of a member; from tensors (K, ...).

    Raises:
        BenchError: it is more than `TOLERANCE`.
    """
    differences: dict[str, float] = {}
    reference = ""
    expected: dict[str, Tensor] = {}
    for way, gradients in found:
        if not expected:
            reference, expected = way, gradients
            continue
        distances = _squares({name: gradients[name] - gradient for name, gradient in expected.items()})
        difference = (distances.max() / _squares(expected).max()).sqrt().item()
        if not difference <= TOLERANCE:
            raise BenchError(
                f"the gradients of {way} differ from those of {reference} by {difference:.1e}, expected at most "
                f"{TOLERANCE:g}: they do not compute the same"
            )
        differences[f"{way}/{reference}"] = difference
    return differences


def describe_run(base: str, settings: BenchSettings) -> dict[str, Any]:
    """The keys of the document that say what is measured on what."""
    packages = ["accelerate", *(way for way in settings.measured_ways if way == "trl")]
    return {
        "command": shlex.join(["softspec", *sys.argv[1:]]),
        "versions": machine.versions(*packages),
        "machine": machine.machine(),
        "threads": torch.get_num_threads(),
        "dtype": "bfloat16" if torch.cuda.is_available() else "float32",
        "model": machine.base(base),
        "settings": asdict(settings),
        "ways": {way: WAYS[way] for way in settings.measured_ways},
        "left_out": settings.left_out,
    }


def print_plan(settings: BenchSettings) -> None:
    """Tell what will be measured, on stderr, before it begins."""
    print(
        f"{settings.repeats} repeats of {settings.steps} steps of {settings.examples_per_step} examples, "
        f"rank {settings.rank}, each way in each of",
        file=sys.stderr,
    )
    for cell in settings.cells:
        print(f"  {cell}", file=sys.stderr)
    for way in settings.measured_ways:
        print(f"  {way:16} {WAYS[way]}", file=sys.stderr)
    for regime in settings.regimes:
        print(f"  {regime:16} {REGIMES[regime]}", file=sys.stderr)


def _squares(gradients: Mapping[str, Tensor]) -> Tensor:
    """The squared norm of each member's gradient, (K,)."""
    return torch.stack([gradient.double().square().flatten(1).sum(1) for gradient in gradients.values()]).sum(
        0
    )
