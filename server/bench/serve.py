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
from collections.abc import Sequence
from contextlib import AbstractContextManager, AsyncExitStack
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
        # Ended by this signal too, the server in its session of its own must not stay behind.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            return asyncio.run(_Bench(directory, manifest, base, output, settings, vllm_args).run())
        except KeyboardInterrupt as error:
            raise BenchInterrupted(f"interrupted; '{output}' has the repeats so far") from error
        finally:
            # The engine's finaliser would fail at exit, when the modules that it needs are being taken apart.
            gc.collect()


class _Bench:
    """One run, from the engines' start to their end."""

    def __init__(
        self,
        directory: Path,
        manifest: Manifest,
        base: str | None,
        output: Path,
        settings: BenchSettings,
        vllm_args: Sequence[str],
    ) -> None:
        self._directory = directory
        self._manifest = manifest
        self._output = output
        self._settings = settings
        # While a shared prompt is computed it takes a row of its own.
        rows = manifest.num_members + isinstance(manifest.activation, BlockActivation)
        self._rows = max(settings.concurrency) * rows
        self._tokens_per_row = max(settings.prompt_tokens) + settings.output_tokens
        sizes = ["--max-model-len", str(self._tokens_per_row), "--max-num-seqs", str(self._rows)]
        self._arguments = server_arguments({directory: manifest}, base, [*sizes, *vllm_args])
        self._base = self._arguments[0]

    async def run(self) -> dict[str, Any]:
        model = describe.model(self._base, self._directory, self._manifest)
        stock_environment = self._prepare_environment()
        # Imported here: takes many seconds, and must see the environment.
        from softspec.engine.client import load_ensembles
        from softspec.engine.local import open_engine

        ensembles = load_ensembles([self._directory])
        async with AsyncExitStack() as stack:
            engine = await stack.enter_async_context(
                open_engine(self._arguments, ensembles, self._rows, self._tokens_per_row)
            )
            facts = await engine.facts()
            adapters = ensembles[self._manifest.name].adapters
            ways = local_ways(engine, self._manifest.name, [adapter.name for adapter in adapters])
            if "client" in self._settings.ways:
                url = stack.enter_context(self._stock_server(facts["kv_blocks"], stock_environment))
                session = await stack.enter_async_context(open_session())
                ways["client"] = client_way(SteppingClient(session, url, self._manifest, model["vocab_size"]))
            if "reference" in self._settings.ways:
                torch.set_num_threads(facts["threads"])
                ways["reference"] = reference_way(ReferenceEnsemble.load(self._base, self._directory))
            description = {
                "command": shlex.join(["softspec", *sys.argv[1:]]),
                "versions": describe.versions(),
                "machine": describe.machine(),
                "engine": facts,
                "model": model,
            }
            results = Results(self._output, description, self._settings)
            with tqdm(
                bar_format="{desc}{percentage:3.0f}%|{bar}| {elapsed}<{remaining}", file=sys.stderr
            ) as bar:
                await measure_all(ways, self._settings, model["vocab_size"], results, bar)
        return results.document

    def _prepare_environment(self) -> dict[str, str]:
        """Set the variables that our engine needs; returns those for the unmodified server."""
        quiet = {"VLLM_LOGGING_STREAM": "ext://sys.stderr", "VLLM_LOGGING_LEVEL": "WARNING"}
        before = {**quiet, **os.environ}
        ours = server_environment(Settings((self._directory,)), before)
        os.environ.update({**before, **ours})
        plugin = {*Settings((self._directory,)).to_environment(), "VLLM_PLUGINS"}
        return {**before, **{name: value for name, value in ours.items() if name not in plugin}}

    def _stock_server(self, kv_blocks: int, environment: dict[str, str]) -> AbstractContextManager[str]:
        return stock_server(
            [*self._arguments, "--num-gpu-blocks-override", str(kv_blocks)],
            self._directory,
            self._manifest.num_members,
            environment,
            log=self._output.with_suffix(".server.log"),
        )


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
