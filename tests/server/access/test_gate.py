"""Who may ask: with OpenAI's client, around the scripted engine."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from fastapi import WebSocket, WebSocketDisconnect
from fastapi.testclient import TestClient

from softspec.server.access.settings import AccessSettings, RequestLimits
from softspec.server.observe.account import Account
from softspec.server.policy.policy import Policy
from softspec.server.policy.rules import PolicyRules
from tests.support.fake_engine import AGREED, ENSEMBLE, FakeEngine, client_of, make_app
from tests.support.key_files import key_file, secret

HELLO: Any = [{"role": "user", "content": "hello"}]
Asking = Callable[..., openai.OpenAI]


@pytest.fixture
def asking(tmp_path: Path) -> Asking:
    """A client with the key `mine`, which may do what is given here."""

    def make(key: str = secret("mine"), rules: PolicyRules | None = None, **fields: Any) -> openai.OpenAI:
        settings = AccessSettings(keys=key_file(tmp_path, mine=fields))
        return client_of(make_app(FakeEngine([AGREED]), rules=rules, access=settings), key)

    return make


def ask(client: openai.OpenAI, **fields: Any) -> Any:
    return client.chat.completions.create(**{"model": ENSEMBLE, "messages": HELLO, **fields})


def test_known_key_is_answered(asking: Asking) -> None:
    assert ask(asking()).choices[0].message.content


@pytest.mark.parametrize("key", ["sk-yours", "sk-", "mine"])
def test_unknown_key_is_an_authentication_error(asking: Asking, key: str) -> None:
    with pytest.raises(openai.AuthenticationError) as refused:
        ask(asking(key))

    assert (refused.value.code, refused.value.type) == ("invalid_api_key", "invalid_request_error")
    assert refused.value.response.headers["www-authenticate"] == "Bearer"
    assert key not in str(refused.value)


@pytest.mark.parametrize("header", [None, "", "Bearer", "Bearer  ", "Basic c2stbWluZQ==", "sk-mine"])
def test_request_without_a_key_is_told_how_to_send_one(asking: Asking, header: str | None) -> None:
    http = asking()._client
    headers = {} if header is None else {"authorization": header}

    answer = http.post("/v1/chat/completions", json={"model": ENSEMBLE, "messages": HELLO}, headers=headers)

    assert answer.status_code == 401
    assert "send one as 'Authorization: Bearer KEY'" in answer.json()["error"]["message"]


def test_key_of_other_letters_than_ascii_is_unknown(asking: Asking) -> None:
    answer = asking()._client.get("/v1/models", headers=[(b"authorization", "Bearer ключ".encode())])

    assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")


def test_server_without_a_key_file_asks_nobody() -> None:
    client = client_of(make_app(FakeEngine([AGREED]), access=AccessSettings()), "whatever")

    assert ask(client).choices


def test_account_of_a_request_has_the_name_of_its_key(tmp_path: Path) -> None:
    accounts: list[Account] = []
    settings = AccessSettings(keys=key_file(tmp_path, mine={}))
    app = make_app(FakeEngine([AGREED]), observers=[accounts.append], access=settings)

    ask(client_of(app, secret("mine")))
    with pytest.raises(openai.AuthenticationError):
        ask(client_of(app, "sk-other"))

    assert [(account.key, account.status) for account in accounts] == [("mine", 200), (None, 401)]


# Models


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("model", [f"{ENSEMBLE}/member-0", "base"])
def test_model_that_the_key_may_not_ask_is_a_permission_error(
    asking: Asking, model: str, stream: bool
) -> None:
    with pytest.raises(openai.PermissionDeniedError) as refused:
        ask(asking(models=[ENSEMBLE]), model=model, stream=stream)

    assert f"the API key 'mine' may not ask '{model}': its models are {ENSEMBLE}" in str(refused.value)


@pytest.mark.parametrize("model", ["", None])
def test_model_that_nobody_named_must_be_allowed_too(asking: Asking, model: str | None) -> None:
    assert ask(asking(models=[ENSEMBLE]), model=model).model == ENSEMBLE
    with pytest.raises(openai.PermissionDeniedError):
        ask(asking(models=["base"]), model=model)


def test_list_of_models_in_an_error_has_those_that_the_key_may_ask(asking: Asking) -> None:
    with pytest.raises(openai.NotFoundError, match=f"expected one of {ENSEMBLE}/member-1, base\\."):
        ask(asking(models=["base", "*-1"]), model="nobody")


# Actions and paths


def test_policy_that_the_key_may_not_have_is_a_permission_error(asking: Asking) -> None:
    policy = {"action": "abstain", "metric": "max_epistemic", "threshold": 0.5}
    client = asking(actions=["answer"])

    assert ask(client).choices
    with pytest.raises(openai.PermissionDeniedError, match="may not have policy action 'abstain'"):
        ask(client, extra_body={"uncertainty": {"policy": policy}})


def test_policy_of_the_server_must_be_allowed_too(asking: Asking) -> None:
    rules = PolicyRules(Policy("abstain", "max_epistemic", 0.5))

    assert ask(asking(rules=rules, actions=["abstain"])).choices
    with pytest.raises(openai.PermissionDeniedError, match="its actions are answer"):
        ask(asking(rules=rules, actions=["answer"]))


def test_path_that_the_key_may_not_use_is_a_permission_error(asking: Asking) -> None:
    client = asking(paths=["/v1/chat/*"])

    assert ask(client).choices
    with pytest.raises(openai.PermissionDeniedError, match="may not use /v1/completions: its paths are"):
        client.completions.create(model=ENSEMBLE, prompt="hello")


def test_route_that_nobody_listed_needs_an_admin_key(tmp_path: Path) -> None:
    app = make_app(
        FakeEngine([AGREED]), access=AccessSettings(keys=key_file(tmp_path, mine={}, root={"admin": True}))
    )
    app.add_api_route("/collective_rpc", lambda: "done", methods=["POST"])
    http = TestClient(app)

    told = {
        name: http.post("/collective_rpc", headers={"authorization": f"Bearer {secret(name)}"}).status_code
        for name in ("mine", "root", "nobody")
    }

    assert told == {"mine": 403, "root": 200, "nobody": 401}


def test_path_that_is_not_there_is_not_told_to_strangers(asking: Asking) -> None:
    client = asking()

    assert client._client.get("/v1/nothing").status_code == 401
    with pytest.raises(openai.NotFoundError):
        client.get("/nothing", cast_to=object)


def test_web_socket_needs_a_key_too(tmp_path: Path) -> None:
    app = make_app(FakeEngine([AGREED]), access=AccessSettings(keys=key_file(tmp_path, mine={})))

    @app.websocket("/v1/realtime")
    async def echo(socket: WebSocket) -> None:
        await socket.accept()
        await socket.send_text("here")
        await socket.close()

    http = TestClient(app)
    with pytest.raises(WebSocketDisconnect) as refused, http.websocket_connect("/v1/realtime"):
        pass
    with http.websocket_connect(
        "/v1/realtime", headers={"authorization": f"Bearer {secret('mine')}"}
    ) as socket:
        assert socket.receive_text() == "here"

    assert refused.value.code == 1008


# What is open


@pytest.fixture
def ops(tmp_path: Path) -> Callable[[bool], TestClient]:
    def make(protect_ops: bool) -> TestClient:
        settings = AccessSettings(keys=key_file(tmp_path, mine={}), protect_ops=protect_ops)
        app = make_app(FakeEngine([AGREED]), access=settings)
        for path in ("/health", "/ready", "/ping", "/", "/playground/{file}", "/metrics"):
            app.add_api_route(path, lambda: "here", methods=["GET"])
        return TestClient(app)

    return make


def test_probes_and_the_page_need_no_key(ops: Callable[[bool], TestClient]) -> None:
    paths = ("/health", "/ready", "/ping", "/", "/playground/page.js")

    assert [ops(True).get(path).status_code for path in paths] == [200] * len(paths)


@pytest.mark.parametrize("path", ["/metrics", "/docs", "/redoc", "/openapi.json"])
def test_what_operators_look_at_needs_a_key_when_asked(ops: Callable[[bool], TestClient], path: str) -> None:
    key = {"authorization": f"Bearer {secret('mine')}"}

    assert ops(False).get(path).status_code == 200
    assert ops(True).get(path).status_code == 401
    assert ops(True).get(path, headers=key).status_code == 200


def test_question_of_a_browser_whether_it_may_ask_needs_no_key(ops: Callable[[bool], TestClient]) -> None:
    assert ops(True).options("/v1/chat/completions").status_code == 405  # which is the route's own answer


# Size


def small() -> TestClient:
    limited = AccessSettings(limits=RequestLimits(max_body_bytes=1024))
    return TestClient(make_app(FakeEngine([AGREED]), access=limited))


def body(size: int) -> bytes:
    """A request of so many bytes."""
    frame = b'{"model":"%s","messages":[{"role":"user","content":"%s"}]}'
    empty = frame % (ENSEMBLE.encode(), b"")
    return frame % (ENSEMBLE.encode(), b"x" * (size - len(empty)))


@pytest.mark.parametrize(("size", "status"), [(1024, 200), (1025, 413)])
def test_body_above_the_limit_is_refused(size: int, status: int) -> None:
    answer = small().post(
        "/v1/chat/completions", content=body(size), headers={"content-type": "application/json"}
    )

    assert answer.status_code == status
    if status == 413:
        assert answer.json()["error"]["message"].startswith("the body has more than 1024 bytes")
        assert answer.headers["connection"] == "close"


def test_empty_body_is_left_to_the_route() -> None:
    assert small().post("/v1/chat/completions", content=b"").status_code == 422


def test_body_without_a_length_is_read_no_further_than_the_limit() -> None:
    app = make_app(FakeEngine([AGREED]), access=AccessSettings(limits=RequestLimits(max_body_bytes=1024)))
    read: list[int] = []

    async def chunks() -> AsyncIterator[bytes]:
        for number in range(1000):
            read.append(number)
            yield b"x" * 256

    async def ask() -> httpx2.Response:
        async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://s") as http:
            return await http.post("/v1/completions", content=chunks())

    answer = asyncio.run(ask())

    assert answer.status_code == 413
    assert len(read) <= 6
