"""Fields of answers through the real routes: who has them, and who must not have any."""

import json
from typing import Any

import pytest
from starlette.testclient import TestClient

from softspec.server.upstream.settings import UpstreamSettings
from tests.support import fake_engine
from tests.support.fake_engine import ENSEMBLE, TORN, FakeEngine, make_app
from tests.support.scripted_upstream import ScriptedUpstream, answer, chat_answer, chat_stream, error

PIECES = ('{"name"', ': "', "green", '"}')
STRICT = {"metric": "max_epistemic", "threshold": 0.5}
JSON_ANSWER = {"type": "json_object"}


@pytest.fixture(autouse=True)
def _json(monkeypatch: pytest.MonkeyPatch) -> None:
    """The third token is the one on which the members differ."""
    monkeypatch.setattr(fake_engine, "decode", PIECES.__getitem__)


def ask(*scripts: Any, stream: bool = False, **uncertainty: Any) -> dict[str, Any]:
    """The `uncertainty` of the only choice, asked for JSON, with an upstream that follows the scripts."""
    body = {
        "model": ENSEMBLE,
        "messages": [{"role": "user", "content": "Which colour?"}],
        "response_format": JSON_ANSWER,
        "stream": stream,
        "uncertainty": uncertainty,
    }
    with ScriptedUpstream(scripts) as upstream:
        settings = UpstreamSettings(url=upstream.url, model="big", max_retries=0)
        with TestClient(make_app(FakeEngine([TORN]), upstreams={"large": settings})) as client:
            text = client.post("/v1/chat/completions", json=body).text
    if not stream:
        return dict(json.loads(text)["choices"][0]["uncertainty"])
    chunks = [json.loads(line[6:]) for line in text.split("\n\n") if line.startswith("data: {")]
    return dict([chunk["choices"][0] for chunk in chunks if chunk["choices"]][-1]["uncertainty"])


streamed = pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])


@streamed
@pytest.mark.parametrize("detail", ["summary", "tokens", "fields"])
def test_answer_in_json_tells_which_of_its_values_is_doubtful(detail: str, stream: bool) -> None:
    [field] = ask(detail=detail, stream=stream)["fields"]

    assert (field["path"], field["first_token"], field["num_tokens"]) == ("/name", 2, 3)
    assert field["epistemic"] == pytest.approx(TORN[1].epistemic + TORN[2].epistemic + TORN[3].epistemic)
    assert (field["max_epistemic"], field["disagreement"]) == (0.6, 0.3)
    assert field["log_prob"] == pytest.approx(sum(token.log_prob for token in TORN[1:]))


@streamed
def test_who_wants_no_detail_gets_none(stream: bool) -> None:
    assert set(ask(detail="none", stream=stream)) == {"decision", "reason", "decided_at"}


@streamed
def test_withheld_answer_has_no_fields(stream: bool) -> None:
    """They would tell what it says."""
    found = ask(detail="fields", policy={"action": "abstain", **STRICT}, stream=stream)

    assert found["decision"] == "abstain"
    assert "fields" not in found


@streamed
def test_answer_of_an_upstream_has_no_fields(stream: bool) -> None:
    """Nobody measured its tokens, and the ensemble's own answer is withheld."""
    script = chat_stream('{"name": "green"}') if stream else answer(chat_answer('{"name": "green"}'))

    found = ask(script, detail="fields", policy={"action": "route", **STRICT}, stream=stream)

    assert found["decision"] == "route"
    assert "fields" not in found


@streamed
def test_answer_that_is_kept_as_the_upstream_failed_has_its_fields(stream: bool) -> None:
    policy = {"action": "route", "on_failure": "answer", **STRICT}

    found = ask(error(500), detail="fields", policy=policy, stream=stream)

    assert found["decision"] == "answer"
    assert [field["num_tokens"] for field in found["fields"]] == [3]
