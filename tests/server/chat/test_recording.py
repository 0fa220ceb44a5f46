"""What of requests is recorded, whole and streamed: only what the ensemble did not answer, and none of what it said."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from softspec.server.record.recorder import Recorder, unanswered_beside
from softspec.server.upstream.settings import UpstreamSettings
from tests.support.fake_engine import AGREED, ENSEMBLE, TORN, FakeEngine, make_app
from tests.support.scripted_upstream import (
    DONE,
    Script,
    ScriptedUpstream,
    answer,
    chat_answer,
    chat_chunk,
    chat_stream,
    error,
    event,
    events,
)

QUESTION = {"role": "user", "content": "Is it allowed?"}
RULE = {"metric": "max_epistemic", "threshold": 0.5}
Rows = list[dict[str, Any]]


def asked(
    folder: Path, engine: FakeEngine, action: str = "route", scripts: Sequence[Script] = (), **fields: Any
) -> tuple[Rows, Rows]:
    """The rows with an answer to learn, and those without, of one request."""
    path = folder / "rows.jsonl"
    recorder = Recorder(path, 10**6, 1)
    policy = {"action": action, **RULE, **fields.pop("policy", {})}
    body = {
        "model": ENSEMBLE,
        "messages": [QUESTION],
        "uncertainty": {"policy": policy, "detail": "none"},
        **fields,
    }
    with ScriptedUpstream(scripts) as upstream:
        settings = UpstreamSettings(url=upstream.url, model="big", max_retries=0)
        app = make_app(engine, upstreams={"large": settings}, recorder=recorder)
        with TestClient(app) as client:
            assert client.post("/v1/chat/completions", json=body).status_code == 200
    recorder.close()
    answered, unanswered = (
        [json.loads(line) for line in each.read_text().splitlines()]
        for each in (path, unanswered_beside(path))
    )
    return answered, unanswered


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_routed_request_is_a_row_with_the_upstreams_answer(tmp_path: Path, stream: bool) -> None:
    script = chat_stream("No", ", ", "never.") if stream else answer(chat_answer("No, never."))

    [row], unanswered = asked(tmp_path, FakeEngine([TORN]), scripts=[script], stream=stream)

    assert row["messages"] == [QUESTION, {"role": "assistant", "content": "No, never."}]
    assert (row["model"], row["answered_by"], row["decision"]) == (ENSEMBLE, "big-1", "route")
    assert row["reason"] == "max_epistemic 0.60 > 0.50 at token 3"
    assert (row["uncertainty"]["num_tokens"], row["uncertainty"]["upstream"]) == (3, "large")
    assert row["time"].endswith("+00:00")
    assert "w0" not in json.dumps(row)
    assert unanswered == []


def test_streamed_tool_call_is_put_together(tmp_path: Path) -> None:
    def part(arguments: str, **more: Any) -> dict[str, Any]:
        call = {"index": 0, "function": {"arguments": arguments, **more.pop("named", {})}, **more}
        return {"choices": [{"index": 0, "delta": {"tool_calls": [call]}, "finish_reason": None}]}

    parts = [
        part("", id="c1", type="function", named={"name": "law"}),
        part('{"of": '),
        part('"records"}'),
        {**chat_chunk(None, "tool_calls")},
    ]
    tool = {"type": "function", "function": {"name": "law"}}

    [row], _ = asked(
        tmp_path, FakeEngine([TORN]), scripts=[events(*map(event, parts), DONE)], stream=True, tools=[tool]
    )

    call = {"id": "c1", "type": "function", "function": {"name": "law", "arguments": '{"of": "records"}'}}
    assert row["messages"][-1] == {"role": "assistant", "content": None, "tool_calls": [call]}
    assert row["tools"] == [tool]


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_abstention_is_a_row_without_an_answer(tmp_path: Path, stream: bool) -> None:
    answered, [row] = asked(tmp_path, FakeEngine([TORN]), "abstain", stream=stream)

    assert answered == []
    assert row["messages"] == [QUESTION]
    assert (row["decision"], "answered_by" in row) == ("abstain", False)


@pytest.mark.parametrize("on_failure", ["abstain", "answer"])
def test_request_whose_upstream_failed_lies_with_the_unanswered(tmp_path: Path, on_failure: str) -> None:
    policy = {"on_failure": on_failure}

    answered, [row] = asked(tmp_path, FakeEngine([TORN]), scripts=[error(500, "on fire")], policy=policy)

    assert answered == []
    assert (row["decision"], row["messages"]) == (on_failure, [QUESTION])
    assert "on fire" in row["reason"]


def test_every_choice_is_recorded_for_itself_and_a_sure_one_not(tmp_path: Path) -> None:
    scripts = [answer(chat_answer("First.")), error(500)]

    answered, unanswered = asked(tmp_path, FakeEngine([AGREED, TORN, TORN]), scripts=scripts, n=3)

    assert [row["messages"][-1]["content"] for row in answered] == ["First."]
    assert len(unanswered) == 1
