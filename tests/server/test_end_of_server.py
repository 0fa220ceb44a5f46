"""How a real server ends: told to stop, told to while it starts, and when its engine dies. Nobody is left waiting."""

import json
import signal
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest

from softspec.artefact.activation import BlockActivation
from tests.support.real_server import BASE, RealServer, descendants, softspec_server
from tests.support.tiny import random_adapters, tiny_llama

pytestmark = [pytest.mark.vllm, pytest.mark.slow]

QUIET: Any = {"VLLM_LOGGING_LEVEL": None}
"""As a user starts it, who has not said what vLLM shall log."""
NAME = "law"
MODELS = (NAME, f"{NAME}/member-0", BASE)
LONGEST = 32_768
ENDLESS = LONGEST - 1_000
"""Tokens of an answer that no machine ends before the server does."""


@pytest.fixture(scope="module")
def ensemble(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ensembles")
    base = tiny_llama(folder / "base")
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "max_position_embeddings": LONGEST}))
    return random_adapters(base, folder / NAME, num_members=2, activation=BlockActivation(), name=NAME)


def ask(server: RealServer, model: str, stream: bool, length: int) -> tuple[int, str, float]:
    """The status, the whole body and the end of one answer of `length` tokens."""
    answer = server.chat(model, stream=stream, max_tokens=length, ignore_eos=True)
    return answer.status_code, answer.text, time.monotonic()


def left_of(processes: list[psutil.Process], timeout_s: float = 10) -> list[psutil.Process]:
    """Those that still run after a while; one whose parent never asks for its exit code has ended too."""
    deadline = time.monotonic() + timeout_s
    while left := [each for each in processes if runs(each)]:
        if time.monotonic() > deadline:
            break
        time.sleep(0.2)
    return left


def runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@contextmanager
def six_requests(server: RealServer, length: int) -> Iterator[list[Future[tuple[int, str, float]]]]:
    """Three streams and three whole answers: of the ensemble, a member and the base; all of them have begun."""
    with ThreadPoolExecutor() as pool:
        asked = [
            pool.submit(ask, server, model, stream, length) for stream in (True, False) for model in MODELS
        ]
        deadline = time.monotonic() + 30
        while "vllm:num_requests_running" not in (
            page := httpx2.get(f"{server.url}/metrics").text
        ) or not any(
            line.startswith("vllm:num_requests_running") and float(line.split()[-1]) >= 6
            for line in page.splitlines()
        ):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        yield asked


def states_until_gone(server: RealServer) -> list[tuple[int, int]]:
    """What `/health`, and `/ready` after it, say until nobody listens any more."""
    seen = []
    with httpx2.Client(base_url=server.url) as client, suppress(httpx2.TransportError):
        while True:
            seen.append((client.get("/health").status_code, client.get("/ready").status_code))
            time.sleep(0.02)
    return seen


def said_since_ready(server: RealServer) -> list[str]:
    """The lines of the log that follow the question which the server proposes when it is ready."""
    return server.log.read_text().rpartition("  curl ")[2].splitlines()[1:]


def wait_until_stopping(server: RealServer) -> None:
    """Until `/ready` says that the signal has arrived, which it does at once."""
    deadline = time.monotonic() + 1
    while server.get("/ready") != 503:
        assert time.monotonic() < deadline


def require_errors(answers: list[tuple[int, str, float]], reason: str) -> None:
    """Raise unless every whole answer is an error in OpenAI's shape, and every stream ends with one."""
    for index, (status, text, _) in enumerate(answers):
        if index < len(MODELS):
            *_, last, done = text.strip().split("\n\n")
            assert (status, done) == (200, "data: [DONE]")
            text = last.removeprefix("data: ")
        else:
            assert status == 500
        error = json.loads(text)["error"]
        assert (error["code"], error["type"]) == (500, "InternalServerError")
        assert error["message"].startswith(reason)


@pytest.mark.parametrize(("drain_s", "length"), [(60, 900), (2, ENDLESS)], ids=["in time", "too long"])
def test_server_that_is_told_to_stop_ends_every_request_and_itself(
    ensemble: Path, tmp_path: Path, drain_s: int, length: int
) -> None:
    with softspec_server(ensemble, tmp_path / "log", "--drain-timeout", str(drain_s), **QUIET) as server:
        server.wait_for(f"softspec is ready: serves '{NAME}' (2 members")
        assert server.get("/ready") == 200
        processes = descendants(server.process.pid)
        with six_requests(server, length) as asked:
            server.process.send_signal(signal.SIGTERM)
            told = time.monotonic()
            wait_until_stopping(server)
            assert server.get("/health") == 200
            refused = server.chat(NAME, max_tokens=1)
            answers = [future.result() for future in asked]
        code = server.process.wait(30)

        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        assert max(end for *_, end in answers) - told < drain_s + 5
        assert time.monotonic() - told < drain_s + 15
        if length == ENDLESS:
            require_errors(answers, "the server is shutting down")
        else:
            assert not [text for status, text, _ in answers if status != 200 or "error" in text]
            assert all(text.endswith("data: [DONE]\n\n") for _, text, _ in answers[: len(MODELS)])
        assert code == 0
        assert not left_of(processes)
        assert said_since_ready(server) == []


def test_server_that_is_told_a_second_time_ends_at_once(ensemble: Path, tmp_path: Path) -> None:
    with softspec_server(ensemble, tmp_path / "log", **QUIET) as server:
        server.wait_for("softspec is ready")
        processes = descendants(server.process.pid)
        with six_requests(server, ENDLESS) as asked:
            server.process.send_signal(signal.SIGTERM)
            wait_until_stopping(server)
            assert not any(future.done() for future in asked)
            server.process.send_signal(signal.SIGTERM)
            told = time.monotonic()
            answers = [future.result() for future in asked]
        code = server.process.wait(30)

        assert time.monotonic() - told < 4
        require_errors(answers, "the server is shutting down")
        assert code == 0
        assert not left_of(processes)
        (line,) = said_since_ready(server)
        assert line.startswith("softspec: warning: SIGTERM came a second time")


@pytest.mark.parametrize(("process", "is_asked"), [("EngineCore", True), ("Worker", False)])
def test_server_whose_engine_dies_says_so_everywhere_and_ends_with_an_error(
    ensemble: Path, tmp_path: Path, process: str, is_asked: bool
) -> None:
    with softspec_server(ensemble, tmp_path / "log", **QUIET) as server:
        server.wait_for("softspec is ready")
        processes = descendants(server.process.pid)
        victim = next(p for p in processes if process in " ".join(p.cmdline()))
        with ExitStack() as stack:
            asked = stack.enter_context(six_requests(server, ENDLESS)) if is_asked else []
            victim.kill()
            began = time.monotonic()
            seen = states_until_gone(server)
            answers = [future.result() for future in asked]
        code = server.process.wait(30)

        assert set(seen) <= {(200, 200), (200, 503), (503, 503)}
        assert is_asked or seen[-1] == (503, 503)
        assert max((end for *_, end in answers), default=began) - began < 2
        require_errors(answers, "the engine has died")
        assert time.monotonic() - began < 5
        assert code == 1
        assert not left_of(processes)
        died, *_, last = [line for line in said_since_ready(server) if line.startswith("softspec: ")]
        assert died.startswith("softspec: error: the engine has died")
        assert last.startswith("softspec: the engine died while serving")


@pytest.mark.parametrize(
    "sign", [pytest.param("Starting to load model", marks=pytest.mark.soak), "init engine"]
)
@pytest.mark.parametrize("number", [signal.SIGTERM])
def test_server_that_is_told_to_stop_while_it_starts_is_gone_within_seconds(
    ensemble: Path, tmp_path: Path, sign: str, number: signal.Signals
) -> None:
    with softspec_server(ensemble, tmp_path / "log") as server:
        server.wait_for(sign)
        processes = descendants(server.process.pid)
        server.process.send_signal(number)
        code = server.process.wait(20)

        assert code == 128 + number
        assert f"softspec: stopped by {number.name} while the server started" in server.log.read_text()
        assert not left_of(processes)
