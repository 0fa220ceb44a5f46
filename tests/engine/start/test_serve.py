"""How vLLM's server is started: what is wrong is said before an engine is started, and a start can be ended.

The server itself, from its first request to its end, is in `tests/server/test_end_of_server.py`.
"""

import asyncio
import gc
import os
import re
import signal
import socket
import subprocess
import sys
import time
import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from softspec.artefact.activation import BlockActivation
from softspec.artefact.manifest import load_manifest
from softspec.errors import ConfigError, EngineError, SoftspecError
from softspec.server.ops.launch import server_arguments
from tests.support.tiny import random_adapters

pytestmark = pytest.mark.vllm

# Waits for ever, whatever it is told, with a child that does so too.
STUBBORN = """
import subprocess, sys, time
from softspec.engine.start import interruption

interruption.PATIENCE_S = 0.5
with interruption.interruptible_start():
    child = subprocess.Popen([sys.executable, "-c", "import signal; signal.signal(15, signal.SIG_IGN); signal.pause()"])
    told = [child.pid]
    while True:
        try:
            while told:
                print(told.pop(), flush=True)
            time.sleep(60)
        except KeyboardInterrupt:
            pass
"""
# Tells how it ended; `wait` is what it does until then.
OBEDIENT = """
import time
from softspec.engine.start.interruption import interruptible_start
from softspec.errors import Interrupted

try:
    with interruptible_start():
        print("begun", flush=True)
        {wait}
except Interrupted as error:
    print(error)
    raise SystemExit(error.exit_code)
"""


SLEEP = "time.sleep(60)"
SLEEP_BADLY = """try:
            time.sleep(60)
        finally:
            raise RuntimeError("the engine did not start")"""
SLEEP_ON = """try:
            time.sleep(60)
        except KeyboardInterrupt:
            pass"""


@pytest.fixture(scope="module")
def ensemble(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ensemble") / "law"
    return random_adapters(tiny_base, folder, num_members=2, activation=BlockActivation(block_size=48))


def started(ensemble: Path, monkeypatch: pytest.MonkeyPatch, *flags: str) -> str:
    """The line with which a start ends for which no engine is needed."""
    from softspec.engine.start import serve

    def start_engine(*_: object) -> None:
        raise AssertionError("an engine was started")

    monkeypatch.setattr(serve.AsyncLLM, "from_vllm_config", start_engine)
    arguments = server_arguments({ensemble: load_manifest(ensemble)}, None, flags)
    with pytest.raises(SoftspecError) as told:
        serve.run(arguments, loaded(ensemble), allow_untested=False)
    line, code = str(told.value), told.value.exit_code
    del told
    with warnings.catch_warnings():
        # vLLM leaves a socket behind that it could not bind.
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()
    assert "\n" not in line
    assert code == 2
    return line


def test_address_of_the_server_to_be_may_be_refused_before_an_engine_starts(
    ensemble: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from softspec.engine.start import serve

    asked = []

    def refuse(host: str | None, port: int) -> None:
        asked.append((host, port))
        raise ConfigError("that is me")

    monkeypatch.setattr(
        serve.AsyncLLM, "from_vllm_config", lambda *_, **__: pytest.fail("an engine was started")
    )
    for flags in (["--port", "8123"], ["--host", "::1", "--port", "8124"]):
        arguments = server_arguments({ensemble: load_manifest(ensemble)}, None, flags)
        with pytest.raises(ConfigError, match="that is me"):
            serve.run(arguments, loaded(ensemble), allow_untested=False, may_listen=refuse)

    assert asked == [(None, 8123), ("::1", 8124)]


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--stream-interval", "4"], "--stream-interval: not tested with ensembles"),
        (["--data-parallel-size", "2"], "--data-parallel-size: not tested"),
        (["--max-num-seqs", "2"], "has 3 rows but the engine allows 2"),
        (["--max-num-active-seqs", "2", "--max-num-seqs", "8"], "--max-num-active-seqs 3"),
        ([], "multiples of 48 tokens but KV blocks have multiples of"),
        (["--max-model-len", "99999"], "vLLM refuses these settings: .*99999"),
        (["--enable-auto-tool-choice"], "vLLM refuses these settings: .*--tool-call-parser"),
        (["--enable-auto-tool-choice", "--tool-call-parser", "nobody's"], "vLLM refuses .*nobody's"),
        (["--chat-template", "/no/such/file.jinja"], "vLLM refuses these settings"),
        (["--port", "{taken}"], "cannot listen: Address already in use; give another --port"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")
def test_what_is_wrong_is_said_before_an_engine_is_started(
    ensemble: Path, monkeypatch: pytest.MonkeyPatch, flags: Sequence[str], complaint: str
) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        where = ["--host", "127.0.0.1", *(flag.format(taken=other.getsockname()[1]) for flag in flags)]
        if "--port" not in flags:
            where += ["--port", "0"]

        line = started(ensemble, monkeypatch, *where)
        gc.collect()  # vLLM leaves a socket open that cannot listen

    assert re.search(complaint, line), line


@dataclass
class Engine:
    """What the launcher asks of an engine."""

    errored: bool = False
    stopped: int = 0
    output_processor: Any = None

    async def reset_mm_cache(self) -> None:
        """Nothing to forget."""

    def shutdown(self, timeout: float | None = None) -> None:
        self.stopped += 1
        self.errored = True  # as vLLM's is from then on


@pytest.mark.parametrize("dies", [True, False], ids=["died", "told to stop"])
def test_only_an_engine_that_died_by_itself_ends_the_server_with_an_error(
    tiny_base: Path, tiny_ensembles: dict[str, Path], monkeypatch: pytest.MonkeyPatch, dies: bool
) -> None:
    from softspec.engine.start import serve

    ensemble = tiny_ensembles["block-2"]
    engine = Engine(output_processor=SimpleNamespace(propagate_error=id, process_outputs=id))

    async def serve_until_the_end(*_: object) -> Any:
        if dies:
            engine.errored = True
        else:
            await asyncio.to_thread(engine.shutdown, timeout=0)
        return asyncio.sleep(0)

    monkeypatch.setattr(serve.AsyncLLM, "from_vllm_config", lambda *_, **__: engine)
    monkeypatch.setattr(serve, "build_and_serve", serve_until_the_end)
    arguments = server_arguments(
        {ensemble: load_manifest(ensemble)}, None, ["--host", "127.0.0.1", "--port", "0"]
    )

    with pytest.raises(EngineError, match="the engine died while serving") if dies else nullcontext():
        serve.run(arguments, loaded(ensemble), allow_untested=False)

    assert engine.stopped > 0


def loaded(ensemble: Path) -> Any:
    from softspec.engine.front.ensemble import load_ensembles

    return load_ensembles([ensemble])


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_start_that_does_not_end_by_itself_is_ended_with_all_that_it_started(number: signal.Signals) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", STUBBORN], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    child = psutil.Process(int(process.stdout.readline()))

    process.send_signal(number)
    _, told = process.communicate(timeout=10)

    assert process.returncode == 128 + number
    assert told.strip().startswith(f"softspec: stopped by {number.name} while the server started, and what")
    deadline = time.monotonic() + 5
    while child.is_running() and child.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.parametrize(
    "wait",
    [SLEEP, SLEEP_BADLY, SLEEP_ON],
    ids=["ends", "ends with an error of its own", "loses the interrupt"],
)
def test_start_that_is_told_to_stop_says_so(wait: str) -> None:
    script = OBEDIENT.format(wait=wait)
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.readline()

    os.kill(process.pid, signal.SIGTERM)
    told, _ = process.communicate(timeout=10)

    assert (process.returncode, told.strip()) == (143, "stopped by SIGTERM while the server started")


def test_several_http_servers_are_refused_also_from_a_file_of_flags(
    ensemble: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "flags.yaml").write_text("api-server-count: 2\n")

    line = started(ensemble, monkeypatch, "--config", str(tmp_path / "flags.yaml"))

    assert "expected one HTTP server" in line


@pytest.mark.parametrize("flag", ["--headless", "--api-server-count"])
def test_several_http_servers_are_refused_at_once(ensemble: Path, flag: str) -> None:
    with pytest.raises(ConfigError, match=f"'{flag}' cannot be given"):
        server_arguments({ensemble: load_manifest(ensemble)}, None, [flag])
