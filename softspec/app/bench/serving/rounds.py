"""One run of the benchmark, from the engines' start to their end.

In: an ensemble, vLLM's arguments for it, settings. Out: the document. Imports vLLM, so import it late: the environment
must be complete by then.
"""

import gc
import shlex
import sys
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from softspec.app.bench.core import machine
from softspec.app.bench.core.document import Results
from softspec.app.bench.serving.facts import model as describe_model
from softspec.app.bench.serving.measure import measure_all
from softspec.app.bench.serving.outside_client import SteppingClient, open_session, stock_server
from softspec.app.bench.serving.sample import SUMMARY
from softspec.app.bench.serving.settings import WAYS, BenchSettings
from softspec.app.bench.serving.ways import client_way, local_ways, reference_way
from softspec.artefact.manifest import Manifest
from softspec.engine.front.ensemble import load_ensembles
from softspec.engine.start.local import Room, open_engine
from softspec.reference import ReferenceEnsemble


async def run(
    directory: Path,
    manifest: Manifest,
    arguments: Sequence[str],
    stock_environment: Mapping[str, str],
    output: Path,
    settings: BenchSettings,
) -> dict[str, Any]:
    """Start what the ways need, measure them all, end everything.

    Args:
        directory: the ensemble, whose `manifest` this is.
        arguments: those of `softspec serve` for vLLM.
        stock_environment: variables of the unmodified server.
    """
    base = arguments[0]
    model = describe_model(base, directory, manifest)
    ensembles = load_ensembles([directory])
    async with AsyncExitStack() as stack:
        engine = await stack.enter_async_context(
            open_engine(arguments, ensembles, Room(*settings.room(manifest)))
        )
        facts = await engine.facts()
        members = [model for model in ensembles[0].specs() if model != manifest.name]
        ways = local_ways(engine, manifest.name, members)
        if "client" in settings.ways:
            stock = [*arguments, "--num-gpu-blocks-override", str(facts.kv_blocks)]
            log = output.with_suffix(".server.log")
            url = stack.enter_context(stock_server(stock, directory, manifest, stock_environment, log))
            session = await stack.enter_async_context(open_session())
            ways["client"] = client_way(SteppingClient(session, url, manifest, model["vocab_size"]))
        if "reference" in settings.ways:
            torch.set_num_threads(facts.threads)
            ways["reference"] = reference_way(ReferenceEnsemble.load(base, directory))
        description = {
            "command": shlex.join(["softspec", *sys.argv[1:]]),
            "versions": machine.versions(),
            "machine": machine.machine(),
            "engine": asdict(facts),
            "model": model,
            "settings": asdict(settings),
            "ways": {way: WAYS[way] for way in settings.ways},
            "left_out": settings.left_out,
        }
        results = Results(output, description, SUMMARY)
        # As vLLM's server does once it has started: no pauses for what stays anyway.
        gc.freeze()
        with tqdm(bar_format="{desc}{percentage:3.0f}%|{bar}| {elapsed}<{remaining}", file=sys.stderr) as bar:
            await measure_all(ways, settings, model["vocab_size"], results, bar)
    return results.document
