"""Several processes on this machine, as torchrun starts them: with gloo, on the CPU.

In: a command or a script for every process. Out: how each node's torchrun ended, and what it said.
"""

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from softspec.app.child_server import free_port

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
LIMIT_S = 600


def torchrun(
    *command: str, processes: int = 2, nodes: int = 1, variables: Mapping[str, str] | None = None
) -> list[subprocess.CompletedProcess[str]]:
    """Run so many processes on each of so many nodes, all of which are this machine; one result a node."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes)]
    meeting = ["--nnodes", str(nodes), "--master-addr", "127.0.0.1", "--master-port", str(free_port())]
    running = [
        subprocess.Popen(
            [*launcher, *meeting, "--node-rank", str(node), *command],
            env={**ENVIRONMENT, "PYTHONPATH": str(Path.cwd()), **(variables or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for node in range(nodes)
    ]
    return [_ended(process) for process in running]


def train(
    config_file: Path, *options: str, variables: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """`softspec train` in two processes."""
    [ended] = torchrun("-m", "softspec.app.cli", "train", str(config_file), *options, variables=variables)
    return ended


def _ended(process: "subprocess.Popen[str]") -> subprocess.CompletedProcess[str]:
    try:
        output, errors = process.communicate(timeout=LIMIT_S)
    except subprocess.TimeoutExpired:
        process.terminate()  # torchrun ends its processes
        output, errors = process.communicate(timeout=60)
    arguments: Sequence[str] = process.args  # type: ignore[assignment]
    return subprocess.CompletedProcess(arguments, process.returncode, output, errors)
