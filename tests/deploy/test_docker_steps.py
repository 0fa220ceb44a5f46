"""The steps of the CPU image, taken without Docker: its commands make a clean environment, and its server runs there.

What is not Docker's is done as it stands in the file: the stages' commands, the variables, the user, the entry point,
the health check, the signal. In place of downloading 3 GB, the environment borrows the packages of this one, which are
of the same versions.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from string import Template
from typing import Any

import httpx2
import pytest

from softspec.app.child_server import free_port
from tests.support.dockerfile import stages_of
from tests.support.tiny import random_adapters, tiny_llama

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
STAGES = stages_of(ROOT / "deploy" / "docker" / "Dockerfile.cpu")
IMAGE = STAGES[-1]
NOT_RUN = {
    "python -m pip install --no-cache-dir setuptools": "this environment has it, from the same pin",
    "python -m pip install --no-cache-dir --no-deps --index-url": "borrowed: torch",
    "python -m pip install --no-cache-dir --no-deps --requirement": "borrowed: the pinned packages",
    "apt-get": "a package of the system; this machine has it, or vLLM would not run",
    "useradd": "a user of the system; its number does without",
}
"""Why a command of the file is not run, by what it begins with."""
PYTHON = f"python3.{sys.version_info.minor}"


@dataclass
class Taken:
    """What the steps made: a folder in the place of the image's root, and who works there."""

    folder: Path
    python: str
    user: Mapping[str, Any]

    def at(self, text: str) -> str:
        """A command or a value with the image's places in this folder."""
        for place in ("/src", "/dist", "/opt", "/cache"):
            text = text.replace(place, f"{self.folder}{place}")
        return text

    def run(self, stage: str, command: str) -> None:
        """One RUN of the file, as who builds, with the Python that it would find there."""
        makes_environment = "-m venv" in command
        if makes_environment:
            command = command.replace("python ", f"{self.python} ", 1)
        first = Path(sys.prefix) if stage == "wheel" else self.folder / "opt" / "softspec"
        done = subprocess.run(
            ["/bin/sh", "-e", "-c", self.at(command)],
            cwd=self.folder / "src",
            env={"PATH": f"{first}/bin:/usr/bin:/bin", "HOME": str(self.folder)},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        if makes_environment:
            _borrow_packages(first)

    def environment(self, **more: str) -> dict[str, str]:
        """The image's variables, and nothing of this process."""
        image = {name: self.at(value) for name, value in IMAGE.environment.items()}
        return {
            name: Template(value).substitute(PATH="/usr/bin:/bin") for name, value in image.items()
        } | more

    def start(self, *arguments: str, log: Path, **more: str) -> "subprocess.Popen[bytes]":
        """The entry point, as the image's user."""
        environment = self.environment(**more)
        program, *rest = IMAGE.words("ENTRYPOINT")
        found = shutil.which(program, path=environment["PATH"].partition(":")[0])
        assert found is not None
        with log.open("w") as output:
            return subprocess.Popen(
                [found, *rest, *arguments],
                env=environment,
                cwd="/",
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                **self.user,
            )

    def is_healthy(self, url: str) -> bool:
        """What the image's health check says."""
        environment = self.environment(HEALTH_URL=url)
        program, *rest = IMAGE.words("HEALTHCHECK")
        found = str(shutil.which(program, path=environment["PATH"].partition(":")[0]))
        return (
            subprocess.run([found, *rest], env=environment, capture_output=True, **self.user).returncode == 0
        )


def image_user() -> dict[str, Any]:
    """How a process becomes the image's user, where it may; elsewhere it stays who runs the tests."""
    uid = int(IMAGE.the("USER"))
    return {"user": uid, "group": 0, "extra_groups": ()} if os.getuid() == 0 else {}


def python_for(user: Mapping[str, Any]) -> str:
    """A Python of this version that the image's user may run."""
    for found in (sys.executable, *(f"{folder}/{PYTHON}" for folder in ("/usr/local/bin", "/usr/bin"))):
        try:
            subprocess.run([found, "-c", "import ensurepip"], check=True, capture_output=True, **user)
            return str(found)
        except (OSError, subprocess.CalledProcessError):
            pass
    pytest.skip(f"no {PYTHON} that another user may run")


@pytest.fixture(scope="module")
def taken() -> Iterator[Taken]:
    """The image's steps, done in a folder that everybody may read and nobody but us may change."""
    folder = Path(tempfile.mkdtemp(prefix="image-"))
    folder.chmod(0o755)
    try:
        user = image_user()
        steps = Taken(folder, python_for(user), user)
        _copy_context(folder / "src")
        for stage in STAGES:
            for command in stage.commands:
                if not any(command.startswith(begin) for begin in NOT_RUN):
                    steps.run(stage.name, command)
        (folder / "cache").mkdir()
        if user:
            os.chown(folder / "cache", user["user"], user["group"])
        yield steps
    finally:
        shutil.rmtree(folder)


def _copy_context(target: Path) -> None:
    """What `.dockerignore` lets through, of the files that git knows or would know."""
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    places = [line[1:] for line in lines if line.startswith("!")]
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", *places]
    names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    for name in names:
        if (ROOT / name).exists():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name, follow_symlinks=False)


def _borrow_packages(environment: Path) -> None:
    """Make the pinned packages of this environment those of a new one."""
    (theirs,) = (environment / "lib").glob("python3.*/site-packages")
    (ours,) = (Path(sys.prefix) / "lib").glob(f"{PYTHON}/site-packages")
    (theirs / "borrowed.pth").write_text(f"{ours}\n", encoding="utf-8")


def test_borrowed_packages_are_the_pinned_ones() -> None:
    pinned = (ROOT / "requirements" / "serve-cpu.txt").read_text(encoding="utf-8").splitlines()
    pairs = [line.split("==") for line in pinned if not line.startswith("#")]

    assert [f"{name}=={version(name)}" for name, _ in pairs] == ["==".join(pair) for pair in pairs]


def test_every_command_that_is_not_run_is_in_the_file() -> None:
    commands = [command for stage in STAGES for command in stage.commands]

    assert all(any(command.startswith(begin) for command in commands) for begin in NOT_RUN)


def test_entry_point_is_the_wheels_and_nobody_may_change_it(taken: Taken, tmp_path: Path) -> None:
    code = "import os, softspec; print(softspec.__file__, os.access(os.path.dirname(softspec.__file__), os.W_OK))"
    python = taken.folder / "opt" / "softspec" / "bin" / "python"
    log = tmp_path / "log"

    assert taken.start(*IMAGE.words("CMD"), log=log).wait(120) == 0
    done = subprocess.run(
        [python, "-c", code], env=taken.environment(), cwd="/", capture_output=True, text=True, **taken.user
    )

    assert "--policy-action" in log.read_text()
    place, is_writable = done.stdout.split()
    assert Path(place).is_relative_to(taken.folder / "opt" / "softspec")
    assert is_writable == "False" or not taken.user


@contextmanager
def outside_world() -> Iterator[tuple[str, list[bytes]]]:
    """A proxy that gives nothing and notes who wanted something from elsewhere."""
    asked: list[bytes] = []
    listener = socket.create_server(("127.0.0.1", 0))

    def listen() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                asked.append(connection.recv(1000))

    thread = threading.Thread(target=listen, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", asked
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(10)


@pytest.mark.vllm
def test_server_answers_from_read_only_folders_and_ends_in_peace(taken: Taken) -> None:
    """As another user, without a compiler, and without asking anybody for anything."""
    base = tiny_llama(taken.folder / "models" / "base")
    random_adapters(base, taken.folder / "ensembles" / "law", num_members=2, name="law")
    mounted = [taken.folder / "models", taken.folder / "ensembles"]
    for path in (path for folder in mounted for path in (folder, *folder.rglob("*"))):
        path.chmod(0o555 if path.is_dir() else 0o444)
    log = taken.folder / "log"
    port = free_port()
    health = f"http://127.0.0.1:{port}/health"
    arguments = [str(mounted[1] / "law"), "--base", str(base), "--host", "127.0.0.1", "--port", str(port)]

    with outside_world() as (proxy, asked):
        server = taken.start(
            *arguments,
            "--max-num-seqs=8",
            log=log,
            http_proxy=proxy,
            https_proxy=proxy,
            VLLM_CPU_KVCACHE_SPACE="1",
            CXX="no-compiler",
        )
        try:
            assert not taken.is_healthy(health)
            deadline = time.monotonic() + 300
            while not _is_ready(port):
                assert server.poll() is None, log.read_text()[-4000:]
                assert time.monotonic() < deadline, log.read_text()[-4000:]
                time.sleep(0.2)
            healthy = taken.is_healthy(health)
            body = {"model": "law", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 4}
            answer = httpx2.post(f"http://127.0.0.1:{port}/v1/chat/completions", json=body, timeout=60).json()
            server.send_signal(getattr(signal, IMAGE.the("STOPSIGNAL")))
            code = server.wait(60)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(server.pid, signal.SIGKILL)
            server.wait()

    assert healthy
    assert answer["choices"][0]["uncertainty"]["num_tokens"] > 0
    assert code == 0, log.read_text()[-4000:]
    assert asked == []


def _is_ready(port: int) -> bool:
    try:
        return httpx2.get(f"http://127.0.0.1:{port}/ready", timeout=5).status_code == 200
    except httpx2.TransportError:
        return False
