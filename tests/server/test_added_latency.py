"""What softspec's routes add to vLLM's own for a request to a single member: two servers, asked in turns.

vLLM's front end is whole, from HTTP to its output processor; the engine core behind it follows a script and takes
hardly any time, so that what is left is the handlers'. Counted is the time of the processor, which other processes on
the machine do not lengthen; where there are none, it is the latency.
"""

import asyncio
import gc
import os
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import httpx2
import pytest

from softspec.artefact.manifest import load_manifest, member_dir
from softspec.server.ops.launch import server_arguments
from tests.support.scripted_core import Said, ScriptedAsyncLLM
from tests.support.scripted_vllm import NAME, Server, serving
from tests.support.tiny import random_adapters

pytestmark = pytest.mark.vllm

MEMBER = f"{NAME}/member-0"
TOKENS = 16
ROUNDS = 100
SCRIPT = [Said(letter) for letter in "abcdefghijklmnop"]


@dataclass
class Pair:
    """Two servers on one event loop."""

    ours: Server
    stock: httpx2.AsyncClient


@pytest.fixture(scope="module")
def pair(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    ensemble = random_adapters(tiny_base, tmp_path_factory.mktemp("ensemble") / NAME, num_members=2)
    with serving(ensemble, engine_of=lambda config: ScriptedAsyncLLM(config, [SCRIPT])) as server:
        server.wait_until_ready()
        pair = Pair(server, server.run(stock_app(ensemble)))
        # As vLLM's server does once it has started: what lives on need not be looked through again and again.
        gc.collect()
        gc.freeze()
        yield pair
        gc.unfreeze()


async def stock_app(ensemble: Path) -> httpx2.AsyncClient:
    """vLLM's server with the same adapter as an ordinary LoRA, and no plugin."""
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.entrypoints.launchers.api_server.app_state import init_app_state
    from vllm.entrypoints.launchers.app import build_app
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    manifest = load_manifest(ensemble)
    adapter = f"{MEMBER}={member_dir(ensemble, 0)}"
    flags = server_arguments({ensemble: manifest}, None, ["--disable-log-stats"])
    arguments = ["--model", flags[0], *flags[1:], "--lora-modules", adapter]
    args = make_arg_parser(FlexibleArgumentParser()).parse_args(arguments)
    with patch.dict(os.environ, {"VLLM_PLUGINS": "", "HF_HUB_OFFLINE": "1"}):
        engine = ScriptedAsyncLLM(AsyncEngineArgs.from_cli_args(args).create_engine_config(), [SCRIPT])
        app = build_app(args, ("generate",), engine.model_config)
        await init_app_state(engine, app.state, args, ("generate",))
    assert not hasattr(app.state, "softspec_chat")
    return httpx2.AsyncClient(transport=httpx2.ASGITransport(app=app), base_url="http://stock")


async def seconds_of(client: httpx2.AsyncClient, stream: bool) -> float:
    body: dict[str, Any] = {"model": MEMBER, "stream": stream, "max_tokens": TOKENS, "temperature": 0}
    body["messages"] = [{"role": "user", "content": "May I record a call?"}]
    begun = time.process_time()
    answer = await client.post("/v1/chat/completions", json=body)
    assert answer.status_code == 200, answer.text
    assert "abcdefghijklmnop" in answer.text or stream
    return time.process_time() - begun


async def added(ours: httpx2.AsyncClient, stock: httpx2.AsyncClient, stream: bool) -> list[float]:
    """The differences of requests that were asked one after the other, in either order."""
    differences = []
    for number in range(ROUNDS + 10):
        clients = (ours, stock) if number % 2 else (stock, ours)
        seconds = {client: await seconds_of(client, stream) for client in clients}
        differences.append(seconds[ours] - seconds[stock])
        await asyncio.sleep(0)
    return differences[10:]


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_a_single_member_costs_a_millisecond_more_than_from_vllm_or_less(pair: Pair, stream: bool) -> None:
    runs = [pair.ours.run(added(pair.ours.http, pair.stock, stream)) for _ in range(3)]

    medians = sorted(map(statistics.median, runs))
    print(
        f"added by softspec: medians of {ROUNDS} pairs", *(f"{median * 1e3:.2f}" for median in medians), "ms"
    )
    # A millisecond is the aim on a machine that does nothing else; caches that are shared with others' work double it.
    assert medians[0] < 2e-3
