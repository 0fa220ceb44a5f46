"""What a browser's page of another origin may do: nothing, unless `--allowed-origins` names it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from softspec.server.access.settings import AccessSettings
from tests.support.key_files import key_file
from tests.support.scripted_vllm import NAME, Server, serving
from tests.support.tiny import random_adapters, tiny_llama

pytestmark = pytest.mark.vllm

PAGE = "http://page.example"
ALLOWED = "access-control-allow-origin"
PREFLIGHT = {
    "origin": PAGE,
    "access-control-request-method": "POST",
    "access-control-request-headers": "authorization",
}


@pytest.fixture(scope="module", params=[(), ("--allowed-origins", f'["{PAGE}"]')], ids=["default", "allowed"])
def asked(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, bool]]:
    """A server, and whether the page is allowed."""
    folder: Path = tmp_path_factory.mktemp("models")
    ensemble = random_adapters(tiny_llama(folder / "tiny-base"), folder / NAME, num_members=2)
    access = AccessSettings(keys=key_file(folder, mine={}))
    with serving(ensemble, *request.param, access=access) as server:
        yield server, bool(request.param)


def ask(server: Server, method: str, path: str, headers: dict[str, str]) -> Any:
    return server.run(server.http.request(method, path, headers=headers))


@pytest.mark.parametrize(("path", "status"), [("/health", 200), ("/v1/models", 401)])
def test_answers_and_refusals_are_for_the_page_only_if_it_is_allowed(
    asked: tuple[Server, bool], path: str, status: int
) -> None:
    server, is_allowed = asked

    answer = ask(server, "GET", path, {"origin": PAGE})

    assert answer.status_code == status
    assert answer.headers.get(ALLOWED) == (PAGE if is_allowed else None)


def test_browser_may_ask_whether_it_may_ask_without_a_key(asked: tuple[Server, bool]) -> None:
    server, is_allowed = asked

    answer = ask(server, "OPTIONS", "/v1/chat/completions", PREFLIGHT)

    assert answer.status_code == (200 if is_allowed else 400)
    assert answer.headers.get(ALLOWED) == (PAGE if is_allowed else None)


def test_other_pages_are_never_allowed(asked: tuple[Server, bool]) -> None:
    server, _ = asked

    assert ALLOWED not in ask(server, "GET", "/health", {"origin": "http://other.example"}).headers
