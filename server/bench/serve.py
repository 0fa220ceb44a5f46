"""`softspec bench serve`: an ensemble beside the other ways to its answers, measured on this machine.

In: an ensemble directory or a number of random adapters, a base, settings. Out: a JSON document, rewritten after every
repeat. Starts and ends its own engine, and an unmodified vLLM server where that is among the ways.
"""

import asyncio
import gc
import os
import shlex
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from server.bench import describe
from server.bench.measure import Results, measure_all
from server.bench.outside import SteppingClient, open_session, stock_server
from server.bench.plan import WAYS, BenchSettings
from server.bench.random_ensemble import first_members, random_adapters
from server.bench.ways import client_way, local_ways, reference_way
from server.launch import server_arguments, server_environment
from server.settings import Settings
from softspec.base_model import local_base
from softspec.errors import ConfigError, SoftspecError
from softspec.manifest import DEFAULT_BLOCK_SIZE, BlockActivation, Manifest, load_manifest
from softspec.reference import ReferenceEnsemble

_RANDOM_RANK = 16


class BenchInterrupted(SoftspecError):
    """Ctrl-C; what was measured is on disk. `exit_code` is the shell's 128 + signal number."""

    exit_code = 130


def bench_serve(
    ensemble: Path | None,
    random_members: int | None,
    members: int | None,
    base: str | None,
    output: Path,
    settings: BenchSettings,
    vllm_args: Sequence[str],
) -> dict[str, Any]:
    """Measure, write `output`, and return what it holds.

    Args:
        ensemble: a directory; None for `random_members` random adapters on `base` (default: SmolLM2-135M-Instruct).
        members: measure only the first so many of the directory's members.
        vllm_args: vLLM's own flags; they go to both engines.
    Raises:
        UserError: an ensemble, the base, a setting or a flag is wrong.
        EngineError: an engine does not start, or fails.
        BenchInterrupted: by Ctrl-C; the document holds the repeats so far.
    """
    if (ensemble is None) == (random_members is None):
        raise ConfigError("expected either an ensemble directory or --random-adapters K")
    if ensemble is None and members is not None:
        raise ConfigError(
            "--members is for an ensemble directory: give --random-adapters as many as you want"
        )
    if not output.parent.is_dir():
        raise ConfigError(f"--json is '{output}' but there is no directory '{output.parent}': make it first")
    if torch.cuda.is_available():
        settings = replace(settings, ways=tuple(way for way in settings.ways if way != "reference"))
    with tempfile.TemporaryDirectory(prefix="softspec-bench-") as scratch:
        directory = ensemble
        if directory is None:
            assert random_members is not None
            directory, base = _random_ensemble(random_members, base, Path(scratch) / "random")
        elif members is not None:
            directory = first_members(directory, members, Path(scratch) / "first")
        manifest = load_manifest(directory)
        _print_plan(manifest, settings)
        try:
            with _raise_on_signals():
                return asyncio.run(_measure(directory, manifest, base, output, settings, vllm_args))
        except KeyboardInterrupt as error:
            raise BenchInterrupted(f"interrupted; '{output}' has the repeats so far") from error
        finally:
            # The engine's finaliser would fail at exit, when the modules that it needs are being taken apart.
            gc.unfreeze()
            gc.collect()


async def _measure(
    directory: Path,
    manifest: Manifest,
    base: str | None,
    output: Path,
    settings: BenchSettings,
    vllm_args: Sequence[str],
) -> dict[str, Any]:
    """One run, from the engines' start to their end."""
    # While a shared prompt is computed it takes a row of its own.
    rows = max(settings.concurrency) * (
        manifest.num_members + isinstance(manifest.activation, BlockActivation)
    )
    tokens_per_row = max(settings.prompt_tokens) + settings.output_tokens
    sizes = ["--max-model-len", str(tokens_per_row), "--max-num-seqs", str(rows)]
    arguments = server_arguments({directory: manifest}, base, [*sizes, *vllm_args])
    base = arguments[0]
    model = describe.model(base, directory, manifest)
    stock_environment = _prepare_environment(directory)
    # Imported here: takes many seconds, and must see the environment.
    from softspec.engine.local import open_engine
    from softspec.engine.registry import load_ensembles

    ensembles = load_ensembles([directory])
    async with AsyncExitStack() as stack:
        engine = await stack.enter_async_context(open_engine(arguments, ensembles, rows, tokens_per_row))
        facts = await engine.facts()
        members = [model for model in ensembles[0].specs() if model != manifest.name]
        ways = local_ways(engine, manifest.name, members)
        if "client" in settings.ways:
            stock = [*arguments, "--num-gpu-blocks-override", str(facts["kv_blocks"])]
            log = output.with_suffix(".server.log")
            url = stack.enter_context(
                stock_server(stock, directory, manifest.num_members, stock_environment, log)
            )
            session = await stack.enter_async_context(open_session())
            ways["client"] = client_way(SteppingClient(session, url, manifest, model["vocab_size"]))
        if "reference" in settings.ways:
            torch.set_num_threads(facts["threads"])
            ways["reference"] = reference_way(ReferenceEnsemble.load(base, directory))
        description = {
            "command": shlex.join(["softspec", *sys.argv[1:]]),
            "versions": describe.versions(),
            "machine": describe.machine(),
            "engine": facts,
            "model": model,
        }
        results = Results(output, description, settings)
        # As vLLM's server does once it has started: no pauses for what stays anyway.
        gc.freeze()
        with tqdm(bar_format="{desc}{percentage:3.0f}%|{bar}| {elapsed}<{remaining}", file=sys.stderr) as bar:
            await measure_all(ways, settings, model["vocab_size"], results, bar)
    return results.document


def _prepare_environment(directory: Path) -> dict[str, str]:
    """Set the variables that our engine needs; returns those for the unmodified server."""
    settings = Settings((directory,))
    quiet = {"VLLM_LOGGING_STREAM": "ext://sys.stderr", "VLLM_LOGGING_LEVEL": "WARNING"}
    os.environ.update({**quiet, **os.environ})
    os.environ.update(server_environment(settings, os.environ))
    ours = {*settings.to_environment(), "VLLM_PLUGINS"}
    return {name: value for name, value in os.environ.items() if name not in ours}


@contextmanager
def _raise_on_signals() -> Iterator[None]:
    """SIGINT and SIGTERM raise KeyboardInterrupt at once, while engines start too; so nothing is left running."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _random_ensemble(num_members: int, base: str | None, directory: Path) -> tuple[Path, str]:
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
