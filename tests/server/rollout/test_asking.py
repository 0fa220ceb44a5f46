"""Asking by an alias: who answers, and who may ask so."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from starlette.testclient import TestClient

from softspec.server.access.settings import AccessSettings
from softspec.server.observe.account import Account
from tests.support.fake_engine import AGREED, FakeEngine, make_app
from tests.support.key_files import key_file, secret

HELLO = [{"role": "user", "content": "hello"}]
BOTH = {"my": {"demo": 1, "demo-v2": 1}}


def client(aliases: Any = BOTH, ensembles: Sequence[str] = ("demo", "demo-v2"), **given: Any) -> TestClient:
    app = make_app(FakeEngine([AGREED]), aliases=aliases, ensembles=ensembles, **given)
    return TestClient(app)


def ask(client: TestClient, key: str | None = None, request_id: str | None = None, **fields: Any) -> Any:
    headers = {"x-request-id": request_id} if request_id else {}
    headers |= {"authorization": f"Bearer {secret(key)}"} if key else {}
    return client.post("/v1/chat/completions", json={"messages": HELLO, **fields}, headers=headers)


def answered_by(client: TestClient, **fields: Any) -> str:
    return str(ask(client, **{"model": "my", **fields}).json()["model"])


def test_turns_of_one_user_stay_with_one_ensemble() -> None:
    asked = client()

    of_users = [{answered_by(asked, user=f"user-{number}") for _ in range(3)} for number in range(20)]

    assert {len(models) for models in of_users} == {1}
    assert set.union(*of_users) == {"demo", "demo-v2"}


def test_without_a_user_requests_divide_by_their_ids() -> None:
    asked = client()

    by_id = [{answered_by(asked, request_id=f"request-{number}") for _ in range(3)} for number in range(20)]

    assert {len(models) for models in by_id} == {1}
    assert {answered_by(asked) for _ in range(40)} == {"demo", "demo-v2"}


def test_ensemble_that_answered_is_the_one_that_is_told_and_counted() -> None:
    accounts: list[Account] = []
    asked = client({"my": {"demo-v2": 1}}, observers=[accounts.append])

    assert answered_by(asked) == "demo-v2"
    assert accounts[0].model == "demo-v2"


def test_request_without_a_model_asks_the_only_alias() -> None:
    assert answered_by(client({"my": {"demo-v2": 1}}), model=None) == "demo-v2"


def test_where_there_are_several_aliases_the_only_ensemble_is_asked() -> None:
    aliases = {"my": {"demo": 1}, "your": {"demo": 1}}

    assert answered_by(client(aliases, ["demo"]), model=None) == "demo"
    complaint = ask(client(aliases)).json()["error"]
    assert complaint["message"].startswith("'model' is missing and there is not one ensemble")


def test_names_that_are_listed_in_errors_have_the_alias_first() -> None:
    message = ask(client(), model="nobody").json()["error"]["message"]

    assert "does not exist: expected one of my, demo, demo-v2" in message


def test_key_for_the_alias_asks_what_it_stands_for_by_that_name_alone(tmp_path: Path) -> None:
    keys = key_file(tmp_path, outer={"models": ["my"]}, inner={"models": ["demo", "demo-v2"]})
    asked = client(access=AccessSettings(keys=keys))

    statuses = {
        (key, model): ask(asked, key, model=model).status_code
        for key in ("outer", "inner")
        for model in ("my", "demo")
    }

    assert statuses == {
        ("outer", "my"): 200,
        ("outer", "demo"): 403,
        ("inner", "my"): 403,
        ("inner", "demo"): 200,
    }
