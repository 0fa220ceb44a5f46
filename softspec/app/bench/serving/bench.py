"""`softspec bench serve`: an ensemble beside the other ways to its answers, measured on this machine.

In: an ensemble directory or a number of random adapters, a base, settings. Out: a JSON document, rewritten after every
repeat. Checks what can be checked before an engine is started.
"""

import asyncio
import gc
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from softspec.app.bench.core.document import interruptible
from softspec.app.bench.core.layers import adapted_layers
from softspec.app.bench.serving.random_ensemble import first_members, random_adapters
from softspec.app.bench.serving.settings import WAYS, BenchSettings
from softspec.app.outputs import check_output
from softspec.app.smollm2 import local_base
from softspec.artefact.activation import DEFAULT_BLOCK_SIZE, BlockActivation
from softspec.artefact.manifest import Manifest, load_manifest
from softspec.errors import ConfigError
from softspec.server.ops.launch import server_arguments, server_environment
from softspec.server.ops.settings import Settings
from softspec.train.members.base import load_skeleton

_RANDOM_RANK = 16


def bench_serve(
    ensemble: Path | None,
    random_members: int | None,
    layers: str | None,
    members: int | None,
    base: str | None,
    output: Path,
    settings: BenchSettings,
    vllm_args: Sequence[str],
) -> dict[str, Any]:
    """Measure, write `output`, and return what it holds.

    Args:
        ensemble: a directory; None for `random_members` random adapters on `base` (default: SmolLM2-135M-Instruct).
        layers: those of the random adapters, as the flag has them; None is all.
        members: measure only the first so many of the directory's members.
        vllm_args: vLLM's own flags; they go to both engines.
    Raises:
        UserError: an ensemble, the base, a setting or a flag is wrong.
        EngineError: an engine does not start, or fails.
        Interrupted: by Ctrl-C; the document holds the repeats so far.
    """
    if ensemble is None and random_members is None:
        raise ConfigError("found nothing to measure: give an ensemble directory, or --random-adapters K")
    if ensemble is not None and random_members is not None:
        raise ConfigError(
            f"found the ensemble directory '{ensemble}' and --random-adapters {random_members}: give one of them"
        )
    if ensemble is None and members is not None:
        raise ConfigError(
            "--members is for an ensemble directory: give --random-adapters as many as you want"
        )
    if ensemble is not None and layers is not None:
        raise ConfigError(
            f"found the ensemble directory '{ensemble}' and --layers {layers}: its adapters say which layers they are "
            "for; leave --layers out"
        )
    check_output(output)
    if torch.cuda.is_available():
        settings = replace(settings, ways=tuple(way for way in settings.ways if way != "reference"))
    with tempfile.TemporaryDirectory(prefix="softspec-bench-") as scratch:
        directory = ensemble
        if directory is None:
            assert random_members is not None
            directory, base = _random_ensemble(random_members, layers, base, Path(scratch) / "random")
        elif members is not None:
            directory = first_members(directory, members, Path(scratch) / "first")
        manifest = load_manifest(directory)
        rows, tokens_per_row = settings.room(manifest)
        sizes = ["--max-model-len", str(tokens_per_row), "--max-num-seqs", str(rows)]
        arguments = server_arguments({directory: manifest}, base, [*sizes, *vllm_args])
        _print_plan(manifest, settings)
        stock_environment = _prepare_environment(directory)
        try:
            with interruptible(output):
                # Imported here: takes many seconds, and must see the environment.
                from softspec.app.bench.serving.rounds import run

                return asyncio.run(run(directory, manifest, arguments, stock_environment, output, settings))
        finally:
            # The engine's finaliser would fail at exit, when the modules that it needs are being taken apart.
            gc.unfreeze()
            gc.collect()


def _prepare_environment(directory: Path) -> dict[str, str]:
    """Set the variables that our engine needs; returns those for the unmodified server."""
    settings = Settings((directory,))
    quiet = {"VLLM_LOGGING_STREAM": "ext://sys.stderr", "VLLM_LOGGING_LEVEL": "WARNING"}
    os.environ.update({**quiet, **os.environ})
    os.environ.update(server_environment(settings, os.environ))
    ours = {*settings.to_environment(), "VLLM_PLUGINS"}
    return {name: value for name, value in os.environ.items() if name not in ours}


def _random_ensemble(
    num_members: int, layers: str | None, base: str | None, directory: Path
) -> tuple[Path, str]:
    if num_members < 1:
        raise ConfigError(f"--random-adapters is {num_members}: expected at least 1")
    base = base or str(local_base())
    random_adapters(
        Path(base),
        directory,
        num_members,
        _RANDOM_RANK,
        activation=BlockActivation(block_size=DEFAULT_BLOCK_SIZE),
        name="random-adapters",
        layers=adapted_layers(load_skeleton(base), layers) if layers else None,
    )
    return directory, base


def _print_plan(manifest: Manifest, settings: BenchSettings) -> None:
    print(
        f"'{manifest.name}', {manifest.num_members} members, {settings.repeats} repeats of", file=sys.stderr
    )
    for cell in settings.cells:
        print(f"  {cell}: {', '.join(settings.ways_of(cell))}", file=sys.stderr)
    for way in settings.ways:
        print(f"  {way:10} {WAYS[way]}", file=sys.stderr)
