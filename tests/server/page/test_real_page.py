"""The page before a real server with a real engine, which wants a key and then dies."""

import json
from collections.abc import Iterator

import httpx2
import pytest
from playwright.sync_api import Browser, expect

from tests.server.page.test_panels import weights
from tests.support.real_server import RealServer, softspec_server
from tests.support.tiny import random_adapters, tiny_llama
from tests.support.visitor import Visitor

pytestmark = [pytest.mark.vllm, pytest.mark.slow]

NAME = "law"
KEY = {"Authorization": "Bearer secret"}


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealServer]:
    folder = tmp_path_factory.mktemp("real")
    base = tiny_llama(folder / "base")
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 32_768}))
    ensemble = random_adapters(base, folder / NAME, num_members=2, name=NAME)
    with softspec_server(ensemble, folder / "log", "--api-key", "secret") as server:
        server.wait_until_ready()
        yield server


@pytest.fixture
def visitor(browser: Browser, running: RealServer) -> Iterator[Visitor]:
    """Somebody who has given the key."""
    visitor = Visitor(browser, f"{running.url}/")
    expect(visitor.alert()).to_contain_text("Unauthorized")
    visitor.the("#key").fill("secret")
    visitor.the("#key").press("Enter")
    yield visitor.ready()
    visitor.leave()


def test_an_answer_is_shown_with_the_engines_numbers(visitor: Visitor, running: RealServer) -> None:
    visitor.the("summary").filter(has_text="Settings").click()
    for name, value in {"Temperature": "1", "Most tokens": "40", "Seed": "7"}.items():
        visitor.page.get_by_label(name).fill(value)
    visitor.ask("hello")

    shown = visitor.the("#request code").first.text_content() or ""
    body = json.loads(shown.partition("-d '")[2].rpartition("'")[0])
    told = httpx2.post(f"{running.url}/v1/chat/completions", json=body, headers=KEY, timeout=60).json()
    choice = told["choices"][0]
    text = bytes(byte for token in choice["uncertainty"]["tokens"] for byte in token["bytes"]).decode(
        errors="replace"
    )
    assert len(choice["uncertainty"]["tokens"]) == visitor.tokens().count() > 5
    assert "".join(visitor.tokens().all_text_contents()) == text
    assert weights(visitor) == pytest.approx(choice["uncertainty"]["member_weights"], abs=1e-6)


def test_questions_are_decided(visitor: Visitor) -> None:
    visitor.page.get_by_role("link", name="Decisions").click()
    visitor.page.get_by_label("What is asked").fill("It is allowed.")
    visitor.the("#decide-send").click()

    expect(visitor.the("#decided tbody tr")).to_have_count(2)
    expect(visitor.the("#decided thead th")).to_have_text(["option", "probability", "member 0", "member 1"])


def test_a_server_that_dies_leaves_what_it_had_said(visitor: Visitor, running: RealServer) -> None:
    """The last test: nothing is left to ask. The answer has no end, which the page cannot wish for."""
    visitor.page.route(
        "**/v1/chat/completions",
        lambda route: route.continue_(
            post_data=json.dumps({**route.request.post_data_json, "ignore_eos": True})
        ),
    )
    visitor.the("summary").filter(has_text="Settings").click()
    visitor.page.get_by_label("Most tokens").fill("30000")
    visitor.the("#question").fill("hello")
    visitor.the("#question").press("Enter")
    expect(visitor.tokens().nth(5)).to_be_attached(timeout=60_000)
    running.end()

    expect(visitor.alert()).to_contain_text("The connection was lost while the answer was coming.")
    assert visitor.tokens().count() > 5
    visitor.the("#question").fill("Are you there?")
    visitor.the("#question").press("Enter")
    expect(visitor.alert()).to_contain_text("The server cannot be reached.")
