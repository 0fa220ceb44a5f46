"""Routed answers through the real routes: a scripted engine here, a scripted upstream behind a real socket."""

import json
from collections.abc import Sequence
from typing import Any

import openai
import pytest
from prometheus_client import CollectorRegistry, generate_latest
from starlette.testclient import TestClient

from softspec.maths.answer import summarise
from softspec.server.policy.policy import Policy
from softspec.server.upstream.settings import UpstreamSettings
from tests.support.fake_engine import AGREED, ENSEMBLE, TORN, UNIFORM, FakeEngine, client_of, make_app
from tests.support.scripted_upstream import (
    DONE,
    USAGE,
    Script,
    ScriptedUpstream,
    answer,
    chat_answer,
    chat_chunk,
    chat_stream,
    error,
    event,
    events,
    raw,
)

QUESTION: Any = [{"role": "user", "content": "Is it allowed?"}]
ROUTE = {"action": "route", "metric": "max_epistemic", "threshold": 0.5}
CALL = {"id": "c1", "type": "function", "function": {"name": "law", "arguments": '{"of": "records"}'}}
TEXT = {"model": "big-1", "choices": [{"index": 0, "text": "Yes.", "finish_reason": "stop"}], "usage": USAGE}
ENSEMBLE_USAGE = {"prompt_tokens": 7, "completion_tokens": 4, "total_tokens": 11}


class Asked:
    """One request to a server whose only upstream follows scripts, and what the upstream was sent."""

    def __init__(
        self,
        scripts: Sequence[Script],
        engine: FakeEngine | None = None,
        policy: dict[str, Any] | None = None,
        path: str = "chat/completions",
        **fields: Any,
    ) -> None:
        self.engine = engine or FakeEngine([TORN])
        self.registry = CollectorRegistry()
        asked = {"messages": QUESTION} if path == "chat/completions" else {"prompt": "Once"}
        uncertainty = {"policy": {**ROUTE, **(policy or {})}, **fields.pop("uncertainty", {})}
        body = {"model": ENSEMBLE, **asked, "uncertainty": uncertainty, **fields}
        with ScriptedUpstream(scripts) as upstream:
            settings = UpstreamSettings(url=upstream.url, model="big", max_retries=0)
            app = make_app(self.engine, registry=self.registry, upstreams={"large": settings})
            with TestClient(app) as client:
                self.answer = client.post(f"/v1/{path}", json=body)
            self.sent = [request.body for request in upstream.requests]
            self.headers = [request.headers for request in upstream.requests]

    @property
    def body(self) -> Any:
        return self.answer.json()

    @property
    def choice(self) -> Any:
        return self.body["choices"][0]

    @property
    def page(self) -> list[str]:
        """The events of a stream."""
        return [each.removeprefix("data: ") for each in self.answer.text.split("\n\n") if each]

    @property
    def chunks(self) -> list[Any]:
        assert self.page[-1] == "[DONE]"
        return [json.loads(each) for each in self.page[:-1]]

    def metric(self, name: str) -> float | None:
        name, _, label = name.partition(" ")
        return self.registry.get_sample_value(name, {"decision": label, "model": ENSEMBLE})


def test_answer_of_the_upstream_takes_the_place_of_the_ensembles() -> None:
    asked = Asked([answer(chat_answer("No, never."))])

    summary = summarise(TORN[:3], UNIFORM)
    uncertainty = asked.choice.pop("uncertainty")
    assert asked.choice["message"]["content"] == "No, never."
    uncertainty = asked.choice["uncertainty"]
    assert (uncertainty["decision"], uncertainty["upstream"]) == ("route", "large")
    assert uncertainty["reason"] == "max_epistemic 0.60 > 0.50 at token 3"
    assert (uncertainty["decided_at"], uncertainty["num_tokens"]) == (3, 3)
    assert uncertainty["mutual_information"] == pytest.approx(summary.mutual_information)
    assert asked.body["model"] == "big-1"
    assert asked.answer.headers["x-softspec-decision"] == "route"
    assert asked.answer.headers["x-softspec-upstream"] == "large"


def test_usage_is_the_sum_with_both_its_parts() -> None:
    asked = Asked([answer(chat_answer())])

    assert asked.body["usage"] == {
        "prompt_tokens": 14,
        "completion_tokens": 7,
        "total_tokens": 21,
        "softspec": {"ensemble": ENSEMBLE_USAGE, "upstream": USAGE},
    }


def test_upstream_that_tells_no_usage_is_not_made_up() -> None:
    asked = Asked([answer({**chat_answer(), "usage": None})])

    usage = asked.body["usage"]
    assert usage.pop("softspec") == {"ensemble": ENSEMBLE_USAGE, "upstream": None}
    assert usage == ENSEMBLE_USAGE


def test_upstream_gets_the_request_as_it_was_sent_and_none_of_our_fields() -> None:
    fields: dict[str, Any] = {
        "tools": [{"type": "function", "function": {"name": "law", "parameters": {"type": "object"}}}],
        "tool_choice": "auto",
        "response_format": {"type": "json_object"},
        "temperature": 0.25,
        "metadata": {"team": "law"},
        "logprobs": True,
        "top_logprobs": 2,
    }

    asked = Asked([answer(chat_answer())], **fields)

    assert asked.sent == [{"model": "big", "messages": QUESTION, "stream": False, **fields}]


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_nothing_of_the_withheld_answer_leaves_with_any_detail(stream: bool) -> None:
    scripts = [chat_stream("No", ".")] if stream else [answer(chat_answer("No."))]

    asked = Asked(scripts, uncertainty={"detail": "tokens"}, stream=stream, logprobs=True, top_logprobs=1)

    assert '"tokens"' not in asked.answer.text
    assert not any(f"w{number}" in asked.answer.text for number in range(4))
    assert "token_id" not in asked.answer.text


def test_tool_calls_of_the_upstream_arrive_whole() -> None:
    message = {"role": "assistant", "content": None, "tool_calls": [CALL]}
    choice = {"index": 0, "message": message, "finish_reason": "tool_calls"}

    asked = Asked([answer(chat_answer(choices=[choice]))])

    assert asked.choice["message"] == message
    assert asked.choice["finish_reason"] == "tool_calls"


def test_own_field_of_an_upstream_that_is_such_a_server_too_gives_way() -> None:
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": "No."},
        "uncertainty": {"decision": "answer"},
    }

    asked = Asked([answer(chat_answer(choices=[choice]))])

    assert asked.choice["uncertainty"]["decision"] == "route"


def test_every_routed_choice_is_asked_for_by_itself() -> None:
    engine = FakeEngine([AGREED, TORN, TORN])

    asked = Asked([answer(chat_answer("First.")), answer(chat_answer("Second."))], engine, n=3, seed=5)

    texts = [choice["message"]["content"] for choice in asked.body["choices"]]
    assert texts[0] == " w0 w1 w2 w3"
    assert sorted(texts[1:]) == ["First.", "Second."]
    assert [choice["index"] for choice in asked.body["choices"]] == [0, 1, 2]
    assert [choice["uncertainty"].get("upstream") for choice in asked.body["choices"]] == [
        None,
        "large",
        "large",
    ]
    assert [body["n"] for body in asked.sent] == [1, 1]
    assert sorted(body["seed"] for body in asked.sent) == [6, 7]
    assert asked.body["model"] == ENSEMBLE  # of the first choice
    assert asked.body["usage"]["softspec"]["upstream"] == {key: 2 * count for key, count in USAGE.items()}
    assert asked.answer.headers["x-softspec-decision"] == "answer"


@pytest.mark.parametrize("prompts", [["one", "two"], [[1, 2], [3]]], ids=["texts", "token ids"])
def test_of_several_prompts_only_the_doubtful_one_is_sent(prompts: Any) -> None:
    asked = Asked(
        [answer(TEXT)], FakeEngine([AGREED, TORN]), path="completions", prompt=prompts, max_tokens=9
    )

    assert asked.sent == [{"model": "big", "prompt": prompts[1], "max_tokens": 9, "stream": False}]
    assert [choice["text"] for choice in asked.body["choices"]] == [" w0 w1 w2 w3", "Yes."]


def test_prompt_of_token_ids_is_one_prompt() -> None:
    asked = Asked([answer(TEXT)], path="completions", prompt=[1, 2, 3])

    assert asked.sent[0]["prompt"] == [1, 2, 3]


def test_answer_that_is_sure_is_not_sent_anywhere() -> None:
    asked = Asked([answer(chat_answer())], FakeEngine([AGREED]))

    assert asked.sent == []
    assert asked.choice["uncertainty"]["decision"] == "answer"
    assert "softspec" not in asked.body["usage"]
    assert "upstream" not in asked.choice["uncertainty"]


FAULTS = {
    "error status": [error(500, "on fire")],
    "closed": [raw(b"")],
    "malformed": [answer({"choices": []})],
}


@pytest.mark.parametrize("scripts", FAULTS.values(), ids=FAULTS)
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_upstream_that_fails_leaves_an_abstention_that_says_so(
    scripts: Sequence[Script], stream: bool
) -> None:
    asked = Asked(scripts, stream=stream)

    choice = asked.chunks[-1]["choices"][0] if stream else asked.choice
    message = choice["delta"] if stream else choice["message"]
    uncertainty = choice["uncertainty"]
    assert (uncertainty["decision"], uncertainty["decided_at"]) == ("abstain", 3)
    assert uncertainty["reason"].startswith("max_epistemic 0.60 > 0.50 at token 3; upstream 'large' ")
    assert uncertainty["reason"] in message["refusal"]
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", "abstained")
    assert "upstream" not in uncertainty
    assert "w0" not in asked.answer.text
    assert asked.metric("softspec_choices_total abstain") == 1
    assert asked.metric("softspec_choices_total route") is None


def test_failing_upstream_may_be_an_error() -> None:
    asked = Asked([error(500, "on fire")], policy={"on_failure": "error"})

    assert asked.answer.status_code == 502
    assert asked.body["error"]["message"] == "upstream 'large' answered with status 500: on fire"
    assert "x-softspec-decision" not in asked.answer.headers


def test_failing_upstream_may_be_an_error_in_a_stream() -> None:
    asked = Asked([error(500, "on fire")], policy={"on_failure": "error"}, stream=True)

    assert [json.loads(each)["error"]["code"] for each in asked.page[:-1]] == [502]
    assert asked.page[-1] == "[DONE]"


def test_failing_upstream_may_leave_the_ensembles_own_answer() -> None:
    asked = Asked([error(500, "on fire")], policy={"on_failure": "answer"}, uncertainty={"detail": "tokens"})

    summary = summarise(TORN, UNIFORM)
    uncertainty = asked.choice["uncertainty"]
    assert asked.choice["message"]["content"] == " w0 w1 w2 w3"
    assert (uncertainty["decision"], uncertainty["decided_at"]) == ("answer", 3)
    assert "on fire" in uncertainty["reason"]
    assert (uncertainty["num_tokens"], len(uncertainty["tokens"])) == (4, 4)
    assert uncertainty["mutual_information"] == pytest.approx(summary.mutual_information)
    assert asked.metric("softspec_choices_total answer") == 1


def test_own_answer_in_a_stream_is_the_one_without_a_policy() -> None:
    fields: dict[str, Any] = {"stream": True, "stream_options": {"include_usage": True}}
    without = Asked([], policy={"action": "answer", **dict.fromkeys(("metric", "threshold"))}, **fields)

    kept = Asked([error(500, "on fire")], policy={"on_failure": "answer"}, **fields)

    def outline(chunks: list[Any]) -> list[Any]:
        return [
            (chunk.get("usage"), *(choice["delta"] for choice in chunk["choices"]), chunk["model"])
            for chunk in chunks
        ]

    assert outline(kept.chunks) == outline(without.chunks)
    uncertainty = kept.chunks[-2]["choices"][0]["uncertainty"]
    assert (uncertainty["decision"], uncertainty["num_tokens"]) == ("answer", 4)
    assert "on fire" in uncertainty["reason"]


def test_stream_of_the_upstream_passes_through_as_ours() -> None:
    asked = Asked([chat_stream("No", ", ", "never")], stream=True, stream_options={"include_usage": True})

    *parts, last, usage = asked.chunks
    assert [chunk["choices"][0]["delta"] for chunk in parts] == [
        {"content": text} for text in ("No", ", ", "never")
    ]
    assert {chunk["id"] for chunk in asked.chunks} == {"cmpl-1"}
    assert {chunk["model"] for chunk in asked.chunks} == {"big-1"}
    assert all("usage" not in chunk for chunk in (*parts, last))
    uncertainty = last["choices"][0]["uncertainty"]
    assert (uncertainty["decision"], uncertainty["upstream"], uncertainty["num_tokens"]) == (
        "route",
        "large",
        3,
    )
    assert usage["choices"] == []
    assert usage["usage"] == {
        "prompt_tokens": 14,
        "completion_tokens": 7,
        "total_tokens": 21,
        "softspec": {"ensemble": ENSEMBLE_USAGE, "upstream": USAGE},
    }
    assert asked.metric("softspec_choices_total route") == 1
    assert asked.metric("softspec_requests_total route") == 1


def test_usage_in_every_chunk_has_both_parts_too() -> None:
    counts = [
        {"prompt_tokens": 5, "completion_tokens": number, "total_tokens": 5 + number} for number in (1, 2)
    ]
    chunks = [chat_chunk("No", usage=counts[0]), chat_chunk(".", "stop", usage=counts[1])]
    options = {"include_usage": True, "continuous_usage_stats": True}

    asked = Asked([events(*map(event, chunks), DONE)], stream=True, stream_options=options)

    usages = [chunk["usage"] for chunk in asked.chunks]
    assert [usage["softspec"]["upstream"] for usage in usages] == [*counts, counts[1]]
    assert [usage["completion_tokens"] for usage in usages] == [3 + 1, 3 + 2, 4 + 2]
    assert [usage["prompt_tokens"] for usage in usages] == [12, 12, 12]


def test_usage_is_not_sent_to_whom_did_not_ask() -> None:
    asked = Asked([chat_stream("No")], stream=True)

    assert all("usage" not in chunk for chunk in asked.chunks)
    assert asked.chunks[-1]["choices"][0]["finish_reason"] == "stop"


def test_other_choices_of_a_stream_go_on() -> None:
    engine = FakeEngine([AGREED, TORN])

    asked = Asked([chat_stream("No", ".", pause_s=0.02)], engine, {"hold_tokens": 3}, stream=True, n=2)

    texts = {0: "", 1: ""}
    models = {0: set(), 1: set()}  # type: dict[int, set[str]]
    decisions = {}
    for chunk in asked.chunks:
        choice = chunk["choices"][0]
        texts[choice["index"]] += choice["delta"].get("content") or ""
        models[choice["index"]].add(chunk["model"])
        if choice["finish_reason"]:
            decisions[choice["index"]] = choice["uncertainty"]["decision"]
    assert texts == {0: " w0 w1 w2 w3", 1: "No."}
    assert models == {0: {ENSEMBLE}, 1: {"big-1"}}
    assert decisions == {0: "answer", 1: "route"}


@pytest.mark.parametrize("held", [0, 1, 2])
def test_crossing_after_the_hold_is_an_abstention_that_says_so(held: int) -> None:
    asked = Asked([chat_stream("No")], policy={"hold_tokens": held}, stream=True)

    last = asked.chunks[-1]["choices"][0]
    were = "tokens were" if held == 2 else "token was"
    expected = f"max_epistemic 0.60 > 0.50 at token 3; too late to route: {max(held, 1)} {were} held"
    assert asked.sent == []
    assert (last["uncertainty"]["decision"], last["uncertainty"]["reason"]) == ("abstain", expected)
    assert expected in last["delta"]["refusal"]
    assert asked.engine.aborted


def test_first_token_may_always_be_routed() -> None:
    """Nothing was sent before it, however few tokens are held."""
    asked = Asked([chat_stream("No")], FakeEngine([TORN[2:]]), {"hold_tokens": 0}, stream=True)

    assert asked.chunks[-1]["choices"][0]["uncertainty"]["decision"] == "route"
    assert "role" not in asked.chunks[0]["choices"][0]["delta"]


@pytest.mark.parametrize("on_failure", ["answer", "abstain", "error"])
def test_failure_in_the_middle_of_an_upstreams_stream_is_an_error_event(on_failure: str) -> None:
    """Half of an answer was sent, so nothing can take its place."""
    script = events(event(chat_chunk("No")), complete=False)

    asked = Asked([script], policy={"on_failure": on_failure}, stream=True)

    assert json.loads(asked.page[0])["choices"][0]["delta"] == {"content": "No"}
    assert "upstream 'large'" in json.loads(asked.page[-2])["error"]["message"]
    assert asked.page[-1] == "[DONE]"
    assert asked.metric("softspec_choices_total route") is None


def test_stream_that_ends_without_an_end_of_its_answer_is_an_error_too() -> None:
    asked = Asked([events(event(chat_chunk("No")), DONE)], stream=True)

    assert json.loads(asked.page[-2])["error"]["code"] == 502


def test_text_completion_is_streamed_from_the_upstream() -> None:
    parts = [{"index": 0, "text": text, "finish_reason": end} for text, end in (("Yes", None), (".", "stop"))]
    script = events(*(event({**TEXT, "usage": None, "choices": [part]}) for part in parts), DONE)

    asked = Asked([script], path="completions", stream=True)

    assert [chunk["choices"][0]["text"] for chunk in asked.chunks] == ["Yes", "."]
    assert asked.chunks[-1]["object"] == "text_completion"
    assert asked.chunks[-1]["choices"][0]["uncertainty"]["upstream"] == "large"


@pytest.mark.parametrize("policy", [{}, {"threshold": 9.0}], ids=["routed", "sure"])
def test_engine_that_fails_ends_the_request_and_the_call(policy: dict[str, Any]) -> None:
    class Failing(FakeEngine):
        def _chunks(self, request: Any, choices: Any) -> Any:
            for number, chunk in enumerate(super()._chunks(request, choices)):
                if number == 7:
                    yield {"error": {"message": "the engine broke", "code": 500}}
                    return
                yield chunk

    chunks = [chat_chunk("No"), chat_chunk("!"), chat_chunk(".", "stop")]

    asked = Asked(
        [events(*map(event, chunks), DONE, pause_s=0.3)],
        Failing([AGREED + AGREED, TORN]),
        policy,
        stream=True,
        n=2,
        stream_options={"include_usage": True},
    )

    assert json.loads(asked.page[-2])["error"]["message"] == "the engine broke"
    assert asked.page[-1] == "[DONE]"
    assert asked.page.count("[DONE]") == 1


def test_policy_of_the_server_routes_too() -> None:
    with ScriptedUpstream([answer(chat_answer("No."))]) as upstream:
        settings = UpstreamSettings(url=upstream.url, model="big")
        policy = Policy("route", "max_epistemic", 0.5)
        app = make_app(FakeEngine([TORN]), policy, upstreams={"large": settings})
        with TestClient(app) as http:
            client = openai.OpenAI(base_url="http://testserver/v1", api_key="none", http_client=http)
            found: Any = client.chat.completions.create(model=ENSEMBLE, messages=QUESTION)

    assert found.choices[0].message.content == "No."
    assert found.choices[0].uncertainty["upstream"] == "large"


def test_route_without_an_upstream_is_refused() -> None:
    with pytest.raises(openai.BadRequestError, match="no upstream is configured"):
        client_of(make_app(FakeEngine([TORN]))).chat.completions.create(
            model=ENSEMBLE, messages=QUESTION, extra_body={"uncertainty": {"policy": ROUTE}}
        )


def test_routed_answers_are_counted_as_what_they_became() -> None:
    asked = Asked([answer(chat_answer()), error(500)], FakeEngine([TORN, TORN, AGREED]), n=3)

    page = generate_latest(asked.registry).decode()
    for decision in ("route", "abstain", "answer"):
        assert asked.metric(f"softspec_choices_total {decision}") == 1, page
