"""Every request gets an id and an account, whatever becomes of it."""

from typing import Any

import httpx2
import openai
import pytest
from fastapi.testclient import TestClient

from softspec.server.observe.account import Account
from softspec.server.policy.policy import Policy
from tests.support.fake_engine import ENSEMBLE, FakeEngine, client_of, make_app, token

ANSWER = [token(1), token(2, epistemic=0.6, members=(-0.1, -5.0)), token(3)]
HELLO: Any = [{"role": "user", "content": "hello"}]


def accounts_of(engine: FakeEngine, policy: Policy | None = None) -> tuple[openai.OpenAI, list[Account]]:
    accounts: list[Account] = []
    return client_of(make_app(engine, policy, observers=[accounts.append])), accounts


def test_request_without_an_id_gets_one_and_each_another() -> None:
    client, accounts = accounts_of(FakeEngine([ANSWER]))

    raw = [client.chat.completions.with_raw_response.create(model=ENSEMBLE, messages=HELLO) for _ in range(2)]

    assert [account.request_id for account in accounts] == [each.headers["x-request-id"] for each in raw]
    assert accounts[0].request_id != accounts[1].request_id


@pytest.mark.parametrize("stream", [False, True])
def test_account_says_which_model_was_asked_and_what_was_decided(stream: bool) -> None:
    client, accounts = accounts_of(FakeEngine([ANSWER]), Policy("abstain", "max_epistemic", 0.5))

    answer: Any = client.chat.completions.create(model=ENSEMBLE, messages=HELLO, stream=stream)
    _ = list(answer)

    (account,) = accounts
    assert (account.model, account.decision, account.status) == (ENSEMBLE, "abstain", 200)
    assert account.route == account.path == "/v1/chat/completions"
    assert account.mutual_information is not None
    assert account.mutual_information > 0
    assert account.ended_at is not None


def test_account_of_several_choices_has_the_most_disputed_one() -> None:
    agreed = [token(1), token(2)]
    client, accounts = accounts_of(FakeEngine([agreed, ANSWER, agreed]))

    answer: Any = client.chat.completions.create(model=ENSEMBLE, messages=HELLO, n=3)

    told = [choice.uncertainty["mutual_information"] for choice in answer.choices]
    assert accounts[0].mutual_information == pytest.approx(max(told))
    assert max(told) > min(told)


def test_refused_request_has_an_account_too() -> None:
    client, accounts = accounts_of(FakeEngine([ANSWER]))

    with pytest.raises(openai.NotFoundError) as refused:
        client.chat.completions.create(model="nobody", messages=HELLO)

    assert (accounts[0].status, accounts[0].model) == (404, None)
    assert refused.value.response.headers["x-request-id"] == accounts[0].request_id


def test_error_that_nobody_expected_has_an_id_and_an_account() -> None:
    accounts: list[Account] = []
    app = make_app(FakeEngine([ANSWER]), observers=[accounts.append])

    @app.get("/broken")
    async def broken() -> None:
        raise RuntimeError("nobody expected this")

    answer: httpx2.Response = TestClient(app, raise_server_exceptions=False).get("/broken")

    assert (answer.status_code, accounts[0].status) == (500, 500)
    assert answer.headers["x-request-id"] == accounts[0].request_id
