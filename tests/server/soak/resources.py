"""What a server holds while nobody asks it: memory, files, threads, tasks, places in the engine.

In: a server's process and its `/metrics`. Out: numbers to compare before and after.
"""

import json
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import httpx2
import psutil

from tests.support.real_server import RealServer, descendants

_IDLE_WITHIN_S = 30
_LOOKS = 10


@dataclass(frozen=True)
class Held:
    """Of the API server and every process that it started, in the order of their start; memory in bytes.

    `tasks` are the API server's asyncio tasks, `models` those that it lists.
    """

    memory: tuple[int, ...]
    files: tuple[int, ...]
    threads: tuple[int, ...]
    tasks: int
    models: tuple[str, ...]


def held_by(server: RealServer, headers: dict[str, str]) -> Held:
    """What it holds once nothing runs; waits for that.

    Raises:
        AssertionError: something still runs or waits after a while, or a KV block is still in use.
    """
    deadline = time.monotonic() + _IDLE_WITHIN_S
    while busy := busy_series(server):
        assert time.monotonic() < deadline, f"after {_IDLE_WITHIN_S} s without requests: {busy}"
        time.sleep(0.2)
    processes = [psutil.Process(server.process.pid), *descendants(server.process.pid)]
    listed = httpx2.get(f"{server.url}/v1/models", headers=headers).json()["data"]
    return Held(
        tuple(process.memory_info().rss for process in processes),
        tuple(process.num_fds() for process in processes),
        tuple(process.num_threads() for process in processes),
        min(_tasks_of(server) for _ in range(_LOOKS)),  # one that is about to end is none that stays
        tuple(model["id"] for model in listed),
    )


def series(server: RealServer) -> dict[str, float]:
    """Every series of `/metrics`."""
    page = httpx2.get(f"{server.url}/metrics").text
    rows = (line.rsplit(" ", 1) for line in page.splitlines() if line and not line.startswith("#"))
    return {name: float(value) for name, value in rows}


def busy_series(server: RealServer) -> dict[str, float]:
    """The series that say that the engine has something to do, or holds something."""
    names = ("vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc")
    return {name: value for name, value in series(server).items() if name.startswith(names) and value}


def _tasks_of(server: RealServer) -> int:
    """The asyncio tasks of a server that `main` below has started."""
    told = server.log.with_suffix(".tasks")
    told.unlink(missing_ok=True)
    server.process.send_signal(signal.SIGUSR1)
    deadline = time.monotonic() + 10
    while not told.exists() or not told.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return int(json.loads(told.read_text()))


def main(tasks: Path) -> None:
    """`softspec serve`, which writes into a file how many asyncio tasks it has whenever it gets SIGUSR1."""
    import asyncio

    from softspec.app.cli.__main__ import start

    def tell(*_: object) -> None:
        tasks.write_text(json.dumps(len(asyncio.all_tasks())))

    signal.signal(signal.SIGUSR1, tell)
    sys.exit(start())
