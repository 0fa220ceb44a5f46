"""A real server whose callers need a key and whose metrics are elsewhere: from its start to its end."""

import signal
import socket
from pathlib import Path

import httpx2
import openai
import pytest

from softspec.app.child_server import free_port
from tests.support.key_files import key_file, secret
from tests.support.real_server import softspec_server
from tests.support.tiny import random_adapters, tiny_llama

pytestmark = [pytest.mark.vllm, pytest.mark.slow]

NAME = "law"


@pytest.fixture(scope="module")
def ensemble(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ensembles")
    return random_adapters(tiny_llama(folder / "base"), folder / NAME, num_members=2, name=NAME)


def test_real_server_with_keys_budgets_and_a_second_port_serves_and_stops(
    ensemble: Path, tmp_path: Path
) -> None:
    keys = key_file(tmp_path, mine={"models": [NAME], "tokens_per_minute": 10})
    port = free_port()
    ops = f"http://127.0.0.1:{port}"
    flags = ("--keys", str(keys), "--max-wait", "60", "--ops-port", str(port))
    with softspec_server(ensemble, tmp_path / "log", *flags) as server:
        server.wait_until_ready()
        with openai.OpenAI(base_url=f"{server.url}/v1", api_key=secret("mine"), max_retries=0) as client:

            def ask(model: str) -> str | None:
                hello = {"role": "user", "content": "hello"}
                done = client.chat.completions.create(model=model, messages=[hello], max_tokens=8)  # type: ignore[list-item]
                return done.choices[0].finish_reason

            with pytest.raises(openai.PermissionDeniedError):
                ask(f"{NAME}/member-0")
            assert ask(NAME) is not None
            with pytest.raises(openai.RateLimitError, match="10 tokens a minute, and they are spent"):
                ask(NAME)
        assert server.chat(NAME).status_code == 401
        assert [server.get(path) for path in ("/metrics", "/docs", "/health")] == [404, 404, 200]
        assert "softspec_requests_total" in httpx2.get(f"{ops}/metrics").text

        server.process.send_signal(signal.SIGTERM)

        assert server.process.wait(60) == 0
    socket.create_server(("127.0.0.1", port)).close()


def test_second_port_that_is_taken_is_one_line_and_exit_code_2(ensemble: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with softspec_server(ensemble, tmp_path / "log", "--ops-port", str(port)) as server:
            assert server.process.wait(120) == 2

    last = (tmp_path / "log").read_text().splitlines()[-1]
    assert last.startswith(f"softspec: --ops-port {port}: cannot listen: Address already in use")
