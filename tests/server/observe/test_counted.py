"""Every route has a line in the log: who was asked, and as many tokens as the answer's own `usage` says."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.request_log import request_lines
from tests.support.scripted_vllm import HELLO, NAME, Server, serving
from tests.support.tiny import random_adapters, tiny_llama

pytestmark = pytest.mark.vllm

BASE, MEMBER = "tiny-base", f"{NAME}/member-0"
CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
ABSTAIN = {"uncertainty": {"policy": {"action": "abstain", "metric": "max_epistemic", "threshold": 0.5}}}
ASKED: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": (CHAT, {"messages": HELLO}),
    "n": (CHAT, {"messages": HELLO, "n": 3}),
    "abstained": (CHAT, {"messages": HELLO, "n": 2, **ABSTAIN}),
    "member": (CHAT, {"messages": HELLO, "model": MEMBER}),
    "base": (CHAT, {"messages": HELLO, "model": BASE, "n": 2}),
    "text": (TEXT, {"prompt": "once"}),
    "prompts": (TEXT, {"prompt": ["once", "upon a time"], "n": 2}),
    "messages": ("/v1/messages", {"messages": HELLO, "max_tokens": 3}),
    "responses": ("/v1/responses", {"input": "hello"}),
    "batch": ("/v1/chat/completions/batch", {"messages": [HELLO, HELLO]}),
    "invocations": ("/invocations", {"messages": HELLO}),
}
JUDGED = ("chat", "n", "abstained", "text", "prompts", "messages", "responses")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    from tests.support.scripted_core import Said, ScriptedAsyncLLM

    folder = tmp_path_factory.mktemp("models")
    ensemble = random_adapters(tiny_llama(folder / BASE), folder / NAME, num_members=2)
    with serving(ensemble, engine_of=ScriptedAsyncLLM) as server:
        server.engine.play([Said("a"), Said("b", 0.6, (-0.1, -3.0)), Said("c"), Said("d")])
        server.wait_until_ready()
        yield server


def ask(server: Server, name: str, **fields: Any) -> tuple[Any, dict[str, Any]]:
    """The response, and the line of its request."""
    path, body = ASKED[name]
    with request_lines() as lines:
        response = server.post(path, {"model": NAME, **body, **fields})
    (line,) = lines
    assert response.status_code == line["status"] == 200, response.text
    return response, line


@pytest.mark.parametrize("name", ASKED)
def test_tokens_of_the_line_are_those_of_usage(server: Server, name: str) -> None:
    response, line = ask(server, name)

    usage = response.json()["usage"]
    prompt = usage.get("prompt_tokens", usage.get("input_tokens"))
    completion = usage.get("completion_tokens", usage.get("output_tokens"))
    assert (line["prompt_tokens"], line["completion_tokens"]) == (prompt, completion)
    assert line["completion_tokens"] > 0


@pytest.mark.parametrize("name", ["chat", "n", "abstained", "member", "base", "text", "prompts"])
def test_stream_costs_what_its_usage_says(server: Server, name: str) -> None:
    response, line = ask(server, name, stream=True, stream_options={"include_usage": True})

    last = response.text.split("data: ")[-2]
    assert f'"prompt_tokens":{line["prompt_tokens"]},' in last.replace(" ", "")
    assert f'"completion_tokens":{line["completion_tokens"]}' in last.replace(" ", "")
    assert line["completion_tokens"] > 0


@pytest.mark.parametrize("name", ASKED)
def test_line_says_who_was_asked_and_what_was_decided(server: Server, name: str) -> None:
    _, line = ask(server, name)

    path, body = ASKED[name]
    assert (line["model"], line["route"]) == (body.get("model", NAME), path)
    assert line["decision"] == (("abstain" if name == "abstained" else "answer") if name in JUDGED else None)
    assert (line["mutual_information"] is not None) is (name in JUDGED)
    assert 0 < line["ttft_ms"] <= line["duration_ms"]


def test_decisions_are_told_by_the_one_that_the_members_part_on_most(server: Server) -> None:
    """What it costs the engine is not what `usage` says, as options share their prompt."""
    questions = [{"type": "predicate", "name": name, "instructions": name} for name in ("a", "b")]
    server.engine.engine_core.believes = lambda before, token, member: -0.1 - token * (member + 1) % 7
    with request_lines() as lines:
        answers = server.post("/v1/decisions", {"model": NAME, "input": "?", "questions": questions}).json()
    server.engine.engine_core.believes = None

    told = [answer["uncertainty"]["epistemic"] for answer in answers["answers"]]
    assert lines[0]["mutual_information"] == pytest.approx(max(told), abs=1e-6)
    assert (lines[0]["model"], lines[0]["decision"]) == (NAME, "answer")
    assert lines[0]["prompt_tokens"] > 0


def test_decision_of_a_single_member_has_no_uncertainty_to_tell(server: Server) -> None:
    question = {"type": "predicate", "instructions": "a"}
    with request_lines() as lines:
        server.post("/v1/decisions", {"model": MEMBER, "input": "?", "questions": [question]})

    assert (lines[0]["status"], lines[0]["model"]) == (200, MEMBER)
    assert (lines[0]["decision"], lines[0]["mutual_information"]) == (None, None)


def test_scores_are_no_decision(server: Server) -> None:
    with request_lines() as lines:
        server.post("/v1/uncertainty", {"model": NAME, "messages": HELLO, "answers": ["ab", "c"]})

    assert (lines[0]["status"], lines[0]["model"], lines[0]["decision"]) == (200, NAME, None)
    assert lines[0]["completion_tokens"] > 0


def test_what_draws_nothing_costs_nothing(server: Server) -> None:
    with request_lines() as lines:
        server.post("/tokenize", {"model": NAME, "prompt": "hello"})

    assert (lines[0]["model"], lines[0]["prompt_tokens"], lines[0]["completion_tokens"]) == (NAME, 0, 0)
    assert lines[0]["ttft_ms"] is None
