"""A real server in a process of its own, on a real socket, with a real engine: as a user starts it.

In: an ensemble directory and flags. Out: a server to ask, which is gone when the block ends.
"""

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2
import psutil

from softspec.app.child_server import free_port

BASE = "base"
"""The name under which the base is served."""
SOFTSPEC = ("-P", "-m", "softspec.app.cli")
"""What follows `python` on a command line to be `softspec`."""
_STOCK = ("-c", "import sys; from softspec.engine.start.stock import run_stock; run_stock(sys.argv[1:])")


@dataclass
class RealServer:
    """A server in a process of its own; `log` is its standard error, `requests` its standard output."""

    process: "subprocess.Popen[bytes]"
    url: str
    log: Path
    requests: Path

    def get(self, path: str) -> int:
        """The status of a page."""
        return httpx2.get(f"{self.url}{path}", timeout=5).status_code

    def chat(self, model: str, timeout_s: float = 120, **fields: object) -> httpx2.Response:
        """The answer to a greeting."""
        body = {"model": model, "messages": [{"role": "user", "content": "hello"}], **fields}
        return httpx2.post(f"{self.url}/v1/chat/completions", json=body, timeout=timeout_s)

    def wait_until_ready(self, path: str = "/ready", timeout_s: float = 300) -> None:
        """Until a page is 200."""
        deadline = time.monotonic() + timeout_s
        while not self._answers(path):
            assert self.process.poll() is None, self.log.read_text(errors="replace")[-4000:]
            assert time.monotonic() < deadline, self.log.read_text(errors="replace")[-4000:]
            time.sleep(0.2)

    def _answers(self, path: str) -> bool:
        try:
            return self.get(path) == 200
        except httpx2.TransportError:
            return False

    def wait_for(self, sign: str, timeout_s: float = 300) -> None:
        """Until the log says something."""
        deadline = time.monotonic() + timeout_s
        while sign not in (text := self.log.read_text(errors="replace")):
            assert self.process.poll() is None, text[-4000:]
            assert time.monotonic() < deadline, text[-4000:]
            time.sleep(0.2)

    def end(self) -> None:
        """End whatever is left."""
        for process in [*descendants(self.process.pid), self.process]:
            process.kill()
        self.process.wait()


def descendants(pid: int) -> list[psutil.Process]:
    """The processes that this one started, and those that they started."""
    return psutil.Process(pid).children(recursive=True) if psutil.pid_exists(pid) else []


@contextmanager
def softspec_server(
    ensembles: Path | Sequence[Path],
    log: Path,
    *flags: str,
    softspec: Sequence[str] = SOFTSPEC,
    **environment: str | None,
) -> Iterator[RealServer]:
    """`softspec serve` of one or several ensembles; it may not be ready yet. A variable that is None is not set."""
    directories = map(str, [ensembles] if isinstance(ensembles, Path) else ensembles)
    arguments = [*softspec, "serve", *directories, "--served-model-name", BASE, *flags]
    with _running(arguments, log, environment) as server:
        yield server


@contextmanager
def stock_server(model: Path, log: Path, *flags: str, **environment: str) -> Iterator[RealServer]:
    """`vllm serve` of this checkpoint, without softspec; it may not be ready yet."""
    arguments = [*_STOCK, str(model), "--served-model-name", BASE, *flags]
    with _running(arguments, log, {"VLLM_PLUGINS": "", **environment}) as server:
        yield server


@contextmanager
def shell_server(command: str, port: int, log: Path, environment: Mapping[str, str]) -> Iterator[RealServer]:
    """What a shell makes of a command that serves at this port; it may not be ready yet."""
    with _process(["bash", "-c", command], port, log, environment) as server:
        yield server


@contextmanager
def _running(
    arguments: Sequence[str], log: Path, environment: Mapping[str, str | None]
) -> Iterator[RealServer]:
    port = free_port()
    where = ("--host", "127.0.0.1", "--port", str(port), "--enforce-eager", "--max-num-seqs", "32")
    variables = {"VLLM_LOGGING_LEVEL": "INFO", "VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1"}
    wanted = {**os.environ, **variables, **environment}
    given = {name: value for name, value in wanted.items() if value is not None}
    with _process([sys.executable, *arguments, *where], port, log, given) as server:
        yield server


@contextmanager
def _process(
    command: Sequence[str], port: int, log: Path, environment: Mapping[str, str]
) -> Iterator[RealServer]:
    requests = log.with_suffix(".requests")
    with log.open("w") as errors, requests.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=errors, env=environment)
    server = RealServer(process, f"http://127.0.0.1:{port}", log, requests)
    try:
        yield server
    finally:
        server.end()
