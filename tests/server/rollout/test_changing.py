"""Aliases change while the server runs: by HTTP and by one command, whole or not at all."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from softspec.app.cli.main import main
from softspec.server.access.settings import AccessSettings
from tests.support.fake_engine import AGREED, FakeEngine, make_app
from tests.support.key_files import key_file, secret
from tests.support.served_app import served

HELLO = [{"role": "user", "content": "hello"}]
START = {"my": {"demo": 100.0}}
PATH = "/v1/aliases"


def app_of(aliases: Any = START, **given: Any) -> Any:
    return make_app(FakeEngine([AGREED]), aliases=aliases, ensembles=("demo", "demo-v2"), **given)


def answered_by(client: TestClient) -> str:
    asked = {"model": "my", "messages": HELLO, "user": "u"}
    return str(client.post("/v1/chat/completions", json=asked).json()["model"])


def test_request_after_the_change_goes_to_the_new_ensemble(caplog: pytest.LogCaptureFixture) -> None:
    client = TestClient(app_of())
    before = answered_by(client)

    with caplog.at_level(logging.INFO, logger="softspec"):
        answer = client.post(PATH, json={"alias": "my", "weights": {"demo": 0, "demo-v2": 10}})

    assert (before, answered_by(client)) == ("demo", "demo-v2")
    assert answer.json() == client.get(PATH).json()
    assert answer.json()["aliases"] == {"my": {"demo": 0, "demo-v2": 10}}
    [line] = [message for message in caplog.messages if message.startswith("alias ")]
    assert line == "alias 'my' stands for demo 0, demo-v2 10 now, before for demo 100"


def test_alias_is_made_while_the_server_runs() -> None:
    client = TestClient(app_of({}))

    client.post(PATH, json={"alias": "my", "weights": {"demo-v2": 1}})

    assert answered_by(client) == "demo-v2"


@pytest.mark.parametrize(
    ("body", "param", "complaint"),
    [
        ({"alias": "my"}, None, "expected 'alias' and 'weights', or 'shadows', or all three"),
        ({}, None, "expected 'alias' and 'weights', or 'shadows', or all three"),
        ({"shadows": {"demo": {"of": "my", "share": 2}}}, "shadows.demo.share", "a number of at most 1"),
        ({"alias": "a b", "weights": {"demo": 1}}, "alias", "an alias is named 'a b'"),
        ({"alias": "my", "weights": {"demo": -1}}, "weights.demo", "expected a number of at least 0"),
        ({"alias": "my", "weights": {"demo": "1"}}, "weights.demo", 'expected a number (found "1")'),
        ({"alias": "my", "weights": {}}, "weights", "at least one of them above 0"),
        ({"alias": "my", "weights": {"demo": 1}, "weight": 1}, "weight", "unknown key"),
        ({"alias": "my", "weights": {"demo-v2": 1, "nobody": 1}}, None, "'nobody', which is no ensemble"),
        ({"alias": "demo", "weights": {"demo-v2": 1}}, None, "'demo' is a model that is served"),
        ([], "", "expected"),
    ],
)
def test_change_that_cannot_be_changes_nothing(body: Any, param: str | None, complaint: str) -> None:
    client = TestClient(app_of())

    answer = client.post(PATH, json=body)

    error = answer.json()["error"]
    assert (answer.status_code, error["param"] or "") == (400, param or "")
    assert complaint in error["message"]
    assert client.get(PATH).json() == {"aliases": START, "shadows": {}}


def test_nobody_changes_anything_where_nobody_needs_a_key() -> None:
    client = TestClient(app_of(may_change=False))

    answer = client.post(PATH, json={"alias": "my", "weights": {"demo-v2": 1}})

    assert answer.status_code == 403
    assert (
        "start the server with --keys, and use a key with 'admin: true'" in answer.json()["error"]["message"]
    )
    assert client.get(PATH).json() == {"aliases": START, "shadows": {}}


# By command


@pytest.fixture
def direct(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


@pytest.fixture
def url(direct: None) -> Iterator[str]:
    with served(app_of({"my": {"demo": 90.0, "demo-v2": 10.0}})) as url:
        yield url


def test_one_command_leads_all_requests_back(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    codes = [main(["alias", url]), main(["alias", url, "my", "demo=100"]), main(["alias", f"{url}/v1/"])]

    assert codes == [0, 0, 0]
    assert capsys.readouterr().out.splitlines() == ["my: demo 0.9, demo-v2 0.1", "my: demo 1", "my: demo 1"]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["my", "nobody=1"], "the alias 'my' stands for 'nobody', which is no ensemble that is served"),
        (["my"], "found no weight for 'my': expected such as 'softspec alias"),
        (["my", "demo"], "'demo': expected an ensemble and its weight, such as demo=90"),
    ],
)
def test_mistakes_are_one_line(
    url: str, arguments: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code = main(["alias", url, *arguments])

    told = capsys.readouterr()
    assert (code, told.out) == (2, "")
    assert complaint in told.err
    assert len(told.err.splitlines()) == 1


@pytest.mark.parametrize(
    ("url", "complaint"),
    [
        ("http://127.0.0.1:9", "cannot be read: "),
        ("localhost:8000", "no address like http://localhost:8000"),
        ("file:///etc/hostname", "no address like http://localhost:8000"),
        ("http://me:secret@127.0.0.1", "a key belongs into OPENAI_API_KEY"),
    ],
)
def test_server_that_is_not_there_is_one_line(
    direct: None, url: str, complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code = main(["alias", url])

    told = capsys.readouterr().err
    assert code == 2
    assert complaint in told
    assert "secret" not in told


def test_admin_key_is_read_from_the_environment(
    direct: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = key_file(tmp_path, user={}, root={"admin": True})
    codes = []
    with served(app_of(access=AccessSettings(keys=keys))) as url:
        for key in (None, "user", "root"):
            if key:
                monkeypatch.setenv("OPENAI_API_KEY", secret(key))
            codes.append(main(["alias", url, "my", "demo-v2=1"]))

    told = capsys.readouterr()
    assert codes == [2, 2, 0]
    assert "put the key into OPENAI_API_KEY" in told.err
    assert "may not use /v1/aliases: it needs a key with 'admin: true'" in told.err
    assert told.out == "my: demo-v2 1\n"
