"""A client that goes away ends what was computed for it; the door lets the route's own fields through."""

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.scripted_core import Said, ScriptedAsyncLLM
from tests.support.scripted_vllm import NAME, Server, serving
from tests.support.tiny import random_adapters, tiny_llama

pytestmark = pytest.mark.vllm


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("models")
    ensemble = random_adapters(tiny_llama(folder / "tiny-base"), folder / NAME, num_members=2)
    with serving(ensemble, engine_of=ScriptedAsyncLLM) as server:
        server.engine.play([Said("a")] * 900)
        server.wait_until_ready()
        yield server


def test_a_client_that_goes_away_ends_its_groups(server: Server) -> None:
    core = server.engine.play([Said("a")] * 900)
    body = json.dumps({"prompt": "hi", "answers": ["a" * 800, "b" * 800]}).encode()
    headers = [(b"content-type", b"application/json")]
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/uncertainty",
        "headers": headers,
        "query_string": b"",
    }
    messages = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Any:
        if messages:
            return messages.pop()
        while not core.said or not core.said[0].said:
            await asyncio.sleep(0)
        return {"type": "http.disconnect"}

    async def send(_: Any) -> None:
        return None

    async def leave() -> None:
        scope["app"] = server.app
        async with asyncio.timeout(30):
            await server.app(scope, receive, send)
            while core.running:
                await asyncio.sleep(0.01)

    server.run(leave())

    assert core.said
    assert all(state.said < 800 for state in core.said)


def test_the_field_of_other_routes_is_refused_here_with_what_to_send(server: Server) -> None:
    body = {"model": NAME, "prompt": "hi", "answers": ["a"], "uncertainty": {"detail": "tokens"}}

    error = server.post("/v1/uncertainty", body).json()["error"]

    assert (error["code"], error["param"]) == (400, "uncertainty")
    assert "'detail' stands by itself" in error["message"]


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[1]", b'"x"', b"\xff\xfe", b"[" * 3000], ids=lambda body: repr(body[:9])
)
def test_what_is_no_object_is_a_400_as_at_vllms_routes(server: Server, body: bytes) -> None:
    headers = {"content-type": "application/json"}

    answer = server.run(server.http.post("/v1/uncertainty", content=body, headers=headers))

    assert 400 <= answer.status_code < 500, answer.text
    chat = server.run(server.http.post("/v1/chat/completions", content=body, headers=headers))
    assert answer.json().keys() == chat.json().keys()


def test_a_body_that_is_not_said_to_be_json_is_refused(server: Server) -> None:
    answer = server.run(
        server.http.post("/v1/uncertainty", content=b"{}", headers={"content-type": "text/plain"})
    )

    assert 400 <= answer.status_code < 500


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        ({"chat_template": "x"}, "chat_template"),
    ],
)
def test_what_the_server_was_not_started_for_is_refused_by_name(
    server: Server, fields: dict[str, Any], param: str
) -> None:
    hello = [{"role": "user", "content": "hello"}]

    answer = server.post("/v1/uncertainty", {"messages": hello, "answers": ["a"], **fields})

    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
