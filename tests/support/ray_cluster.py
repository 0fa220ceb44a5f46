"""A cluster of Ray on this machine's loopback with softspec's application, started by `ray start` and `serve run`.

In: an ensemble, and a folder for logs. Out: Serve's proxy to ask, and the processes of replicas. Ray's packages lie
beside the environment (`.venv/ray`). Everything is gone when the block ends.
"""

import os
import re
import secrets
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
import psutil
import yaml

from softspec.app.child_server import free_port

ROOT = Path(__file__).parents[2]
RAY = Path(sys.prefix) / "ray"
CONFIG = ROOT / "deploy" / "ray" / "config.yaml"
LOOPBACK = "127.0.0.1"
REPLICA = "x-softspec-replica"
_TOKEN = secrets.token_hex(32)
"""With it, and nobody's whose home has one, programs may run on the cluster."""
_DELETE = "import ray, sys; from ray import serve; ray.init(sys.argv[1]); serve.delete('softspec')"
_RUNNING = re.compile(r"^vllm:num_requests_running\{[^}]*\} (\S+)$", re.MULTILINE)


def environment() -> dict[str, str]:
    """The variables of whatever imports Ray and softspec."""
    assert RAY.is_dir(), f"no {RAY}: run 'make ray'"
    return {
        **os.environ,
        "PYTHONPATH": f"{RAY}{os.pathsep}{ROOT}",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": _TOKEN,
        # Makes Ray take the loopback for this machine's address on Linux too.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        # Tests that run beside these use memory too, of which Ray would kill its own.
        "RAY_memory_monitor_refresh_ms": "0",
        "OMP_NUM_THREADS": "1",
    }


def free_ports(count: int) -> int:
    """The first of so many TCP ports, one after the other, on which nothing listens now."""
    for first in range(20_000, 30_000, count):
        with ExitStack() as probes:
            try:
                for port in range(first, first + count):
                    probes.enter_context(socket.create_server((LOOPBACK, port)))
            except OSError:
                continue
            return first
    raise AssertionError(f"no {count} free ports one after the other")


@dataclass
class Cluster:
    """Ray's node; `url` is Serve's proxy, and `delete` begins to delete the application."""

    url: str
    ops_port: int
    ray: "subprocess.Popen[bytes]"
    log: Path
    delete: Callable[[], object]
    killed: set[str] = field(default_factory=set)

    def replicas(self) -> set[str]:
        """The replicas that answer, as far as some questions find them."""
        answers = [httpx2.get(f"{self.url}/ready", timeout=30) for _ in range(12)]
        return {answer.headers[REPLICA] for answer in answers if answer.status_code == 200}

    def wait_for_replicas(self, count: int, timeout_s: float = 400) -> set[str]:
        """Wait until so many replicas answer that have not been killed."""
        return self._wait(lambda: self._living(count), timeout_s)

    def _living(self, count: int) -> set[str]:
        try:
            found = self.replicas() - self.killed
        except (httpx2.TransportError, KeyError):
            return set()
        return found if len(found) >= count else set()

    def running(self) -> list[int]:
        """Rows that run in each engine whose metrics can be read."""
        found = []
        for port in range(self.ops_port, self.ops_port + 4):
            try:
                page = httpx2.get(f"http://{LOOPBACK}:{port}/metrics", timeout=30).text
            except httpx2.TransportError:
                continue
            found += [int(float(number)) for number in _RUNNING.findall(page)]
        return sorted(found)

    def wait_until_running(self, rows: list[int], timeout_s: float = 60) -> None:
        """Wait until so many rows run in the engines, fewest first."""
        self._wait(lambda: self.running() == rows, timeout_s)

    def processes(self, name: str) -> list[psutil.Process]:
        """Processes of the cluster whose name begins so."""
        living = psutil.Process(self.ray.pid).children(recursive=True)
        return [process for process in living if _name(process).startswith(name)]

    def _wait(self, until: Callable[[], Any], timeout_s: float) -> Any:
        deadline = time.monotonic() + timeout_s
        while not (found := until()):
            assert self.ray.poll() is None, self._told()
            assert time.monotonic() < deadline, self._told()
            time.sleep(0.2)
        return found

    def _told(self) -> str:
        return self.log.read_text(errors="replace")[-6000:]


def _name(process: psutil.Process) -> str:
    try:
        return process.name()
    except psutil.NoSuchProcess:
        return ""


@contextmanager
def ray_cluster(ensemble: Path, folder: Path, flags: Sequence[str], **scaling: float) -> Iterator[Cluster]:
    """Serve this ensemble by the configuration that is shipped, but for scaling; nothing may be ready yet."""
    port, gcs_port, ops_port = free_port(), free_port(), free_ports(4)
    settings = folder / "server.yaml"
    settings.write_text(f"access: {{ops_port: {ops_port}}}\n")
    config = _config(ensemble, settings, port, flags, scaling)
    (folder / "serve.yaml").write_text(yaml.safe_dump(config))
    # Ray's sockets lie below its folder, and their paths may have 107 characters.
    with (
        tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as temporary,
        ExitStack() as stack,
    ):
        log = stack.enter_context((folder / "log").open("w"))

        def start(*command: str) -> "subprocess.Popen[bytes]":
            process = subprocess.Popen(
                [sys.executable, *command],
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment(),
                cwd=folder,
            )
            stack.callback(_end, process)
            return process

        ray, address = start(*_start(gcs_port, temporary)), f"{LOOPBACK}:{gcs_port}"
        delete = partial(start, "-c", _DELETE, address)
        cluster = Cluster(f"http://{LOOPBACK}:{port}", ops_port, ray, folder / "log", delete)
        cluster._wait(lambda: "Ray runtime started" in cluster._told(), 120)
        start("-m", "ray.serve.scripts", "run", "--address", address, str(folder / "serve.yaml"))
        yield cluster


def _start(gcs_port: int, temporary: str) -> list[str]:
    options = {
        "--node-ip-address": LOOPBACK,
        "--port": gcs_port,
        "--num-cpus": 4,
        "--object-store-memory": 100_000_000,
        "--include-dashboard": "false",
        "--ray-client-server-port": free_port(),
        "--dashboard-agent-listen-port": free_port(),
        "--temp-dir": temporary,
    }
    given = [str(word) for option in options.items() for word in option]
    return ["-m", "ray.scripts.scripts", "start", "--head", "--block", "--disable-usage-stats", *given]


def _config(
    ensemble: Path, settings: Path, port: int, flags: Sequence[str], scaling: Mapping[str, float]
) -> dict[str, Any]:
    """The shipped configuration for this ensemble and these ports, scaled in this way."""
    config: dict[str, Any] = yaml.safe_load(CONFIG.read_text())
    where = {"host": LOOPBACK, "port": port}
    config |= {"proxy_location": "HeadOnly", "http_options": where}
    (application,) = config["applications"]
    application["args"] |= {
        "ensemble": str(ensemble),
        "server_config": str(settings),
        "flags": " ".join(flags),
        **where,
    }
    (deployment,) = application["deployments"]
    deployment["autoscaling_config"] |= scaling
    return config


def _end(process: "subprocess.Popen[bytes]") -> None:
    """Kill a process and all that it started."""
    started = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
    for each in [process, *started]:
        if each.is_running() if isinstance(each, psutil.Process) else each.poll() is None:
            each.kill()
    process.wait()
    psutil.wait_procs(started, timeout=30)
