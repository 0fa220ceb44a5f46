"""Chat and text completions through the real routes, asked by the official OpenAI client."""

import json
import math
import re
from typing import Any

import openai
import pytest
from prometheus_client import CollectorRegistry, generate_latest
from starlette.testclient import TestClient

from softspec.errors import LockstepError
from softspec.maths.answer import summarise
from softspec.server.policy.policy import Policy
from softspec.server.policy.rules import PolicyRules
from tests.support.fake_engine import AGREED, ENSEMBLE, TORN, UNIFORM, FakeEngine, client_of, make_app, token

QUESTION: Any = [{"role": "user", "content": "Is it allowed?"}]
STRICT = {"action": "abstain", "metric": "max_epistemic", "threshold": 0.5}


def ask(engine: FakeEngine, uncertainty: dict[str, Any] | None = None, **fields: Any) -> Any:
    extra = {} if uncertainty is None else {"uncertainty": uncertainty}
    return client_of(make_app(engine)).chat.completions.create(
        model=ENSEMBLE, messages=QUESTION, extra_body=extra, **fields
    )


def ask_text(engine: FakeEngine, uncertainty: dict[str, Any] | None = None, **fields: Any) -> Any:
    extra = {} if uncertainty is None else {"uncertainty": uncertainty}
    return client_of(make_app(engine)).completions.create(
        **{"model": ENSEMBLE, "prompt": "Once", "extra_body": extra, **fields}
    )


def test_answer_carries_the_fields_of_the_documented_extension() -> None:
    answer = ask(FakeEngine([AGREED]))

    summary = summarise(AGREED, UNIFORM)
    uncertainty = answer.choices[0].uncertainty
    assert list(uncertainty) == [
        "unit", "num_tokens", "log_prob", "mutual_information", "total_entropy", "aleatoric_entropy",
        "epistemic", "max_epistemic", "disagreement", "max_disagreement", "member_log_probs",
        "member_weights", "confidence", "seed", "decision", "reason", "decided_at",
    ]  # fmt: skip
    assert uncertainty["unit"] == "nats"
    assert uncertainty["log_prob"] == pytest.approx(summary.log_prob)
    assert uncertainty["member_weights"] == pytest.approx([0.5, 0.5])
    assert (uncertainty["seed"], uncertainty["confidence"]) == (100, None)
    assert (uncertainty["decision"], uncertainty["reason"]) == ("answer", None)
    assert answer.choices[0].message.content == " w0 w1 w2 w3"


def test_tokens_detail_lists_every_token_with_its_text() -> None:
    answer = ask(FakeEngine([TORN]), {"detail": "tokens"})

    tokens = answer.choices[0].uncertainty["tokens"]
    assert [token["token"] for token in tokens] == [" w0", " w1", " w2", " w3"]
    assert set(tokens[2]) == {
        "token",
        "token_id",
        "bytes",
        "log_prob",
        "total_entropy",
        "aleatoric_entropy",
        "epistemic",
        "disagreement",
        "member_log_probs",
    }
    assert (tokens[2]["epistemic"], tokens[2]["member_log_probs"]) == (0.6, [-0.5, -9.0])


def test_a_token_that_a_member_cannot_say_has_a_number_in_json() -> None:
    answer = ask(FakeEngine([[token(0, members=(-0.5, -math.inf))]]), {"detail": "tokens"})

    assert answer.choices[0].uncertainty["tokens"][0]["member_log_probs"] == [-0.5, -9999.0]


def test_no_detail_leaves_decision_and_reason() -> None:
    answer = ask(FakeEngine([TORN]), {"detail": "none", "policy": STRICT})

    assert answer.choices[0].uncertainty == {
        "decision": "abstain",
        "reason": "max_epistemic 0.60 > 0.50 at token 3",
        "decided_at": 3,
    }


def test_abstaining_withdraws_the_answer_and_keeps_status_200() -> None:
    answer = ask(FakeEngine([TORN]), {"detail": "tokens", "policy": STRICT})

    choice = answer.choices[0]
    assert choice.message.content is None
    assert "max_epistemic 0.60 > 0.50" in choice.message.refusal
    assert (choice.finish_reason, choice.stop_reason) == ("stop", "abstained")
    assert choice.uncertainty["decision"] == "abstain"
    assert "w2" not in answer.model_dump_json()


def test_policy_judges_every_choice_by_itself() -> None:
    answer = ask(FakeEngine([AGREED, TORN]), {"policy": STRICT}, n=2)

    assert [choice.uncertainty["decision"] for choice in answer.choices] == ["answer", "abstain"]
    assert [choice.uncertainty["seed"] for choice in answer.choices] == [100, 101]


def test_server_policy_holds_where_the_request_names_none() -> None:
    client = client_of(make_app(FakeEngine([TORN]), Policy("abstain", "max_epistemic", 0.5)))

    answer = client.chat.completions.create(model=ENSEMBLE, messages=QUESTION)

    assert answer.choices[0].finish_reason == "stop"


def test_request_policy_replaces_the_server_policy() -> None:
    client = client_of(make_app(FakeEngine([TORN]), Policy("abstain", "max_epistemic", 0.5)))

    answer = client.chat.completions.create(
        model=ENSEMBLE, messages=QUESTION, extra_body={"uncertainty": {"policy": {"action": "answer"}}}
    )

    assert answer.choices[0].message.content == " w0 w1 w2 w3"


@pytest.mark.parametrize("policy", [None, {}, {"action": None}, {"threshold": 0.55}])
def test_request_policy_without_an_action_keeps_the_servers(policy: dict[str, Any] | None) -> None:
    client = client_of(make_app(FakeEngine([TORN]), Policy("abstain", "max_epistemic", 0.5)))

    answer: Any = client.chat.completions.create(
        model=ENSEMBLE, messages=QUESTION, extra_body={"uncertainty": {"policy": policy}}
    )

    assert answer.choices[0].uncertainty["decision"] == "abstain"


@pytest.mark.parametrize("policy", [{}, {"threshold": 0.2}, {"threshold": 0.5, "min_tokens": 1}])
def test_pinned_policy_may_be_tightened(policy: dict[str, Any]) -> None:
    app = make_app(FakeEngine([TORN]), Policy("abstain", "max_epistemic", 0.5, 2), pinned=True)

    answer: Any = client_of(app).chat.completions.create(
        model=ENSEMBLE, messages=QUESTION, extra_body={"uncertainty": {"policy": policy}}
    )

    assert answer.choices[0].uncertainty["decision"] == "abstain"


@pytest.mark.parametrize(
    ("policy", "field"),
    [
        ({"action": "answer"}, "action"),
        ({"metric": "disagreement", "threshold": 0}, "metric"),
        ({"threshold": 0.51}, "threshold"),
        ({"threshold": 0.1, "min_tokens": 9}, "min_tokens"),
    ],
)
def test_pinned_policy_is_not_loosened(policy: dict[str, Any], field: str) -> None:
    engine = FakeEngine([TORN])
    app = make_app(engine, Policy("abstain", "max_epistemic", 0.5, 2), pinned=True)

    with pytest.raises(openai.BadRequestError, match="would loosen the server's policy") as refusal:
        client_of(app).chat.completions.create(
            model=ENSEMBLE, messages=QUESTION, extra_body={"uncertainty": {"policy": policy}}
        )

    assert (refusal.value.param, engine.requests) == (f"uncertainty.policy.{field}", [])


def test_headers_tell_the_decision_without_parsing_the_body() -> None:
    raw = client_of(make_app(FakeEngine([AGREED]))).chat.completions.with_raw_response.create(
        model=ENSEMBLE, messages=QUESTION, extra_headers={"x-request-id": "r-17"}
    )

    assert raw.headers["x-softspec-decision"] == "answer"
    assert float(raw.headers["x-softspec-mutual-information"]) == pytest.approx(0.0, abs=1e-6)
    assert raw.headers["x-request-id"] == "r-17"


def test_impossible_tokens_are_sent_as_the_lowest_log_probability() -> None:
    """JSON has no infinity: a member that excludes a token would otherwise break the whole response."""
    impossible = type(TORN[0])(**{**vars(TORN[0]), "member_log_probs": (-1.0, float("-inf"))})

    answer = ask(FakeEngine([[impossible]]))

    assert answer.choices[0].uncertainty["member_log_probs"] == [-1.0, -9999.0]


def test_text_completion_has_the_field_and_abstains_with_empty_text() -> None:
    answered = ask_text(FakeEngine([AGREED]))
    abstained = ask_text(FakeEngine([TORN]), {"policy": STRICT})

    assert answered.choices[0].uncertainty["num_tokens"] == 4
    assert (abstained.choices[0].text, abstained.choices[0].finish_reason) == ("", "stop")


@pytest.mark.parametrize("model", ["base", f"{ENSEMBLE}/member-1"])
def test_single_models_pass_through_without_the_field(model: str) -> None:
    client = client_of(make_app(FakeEngine([AGREED])))

    answer = client.chat.completions.create(model=model, messages=QUESTION)

    assert not hasattr(answer.choices[0], "uncertainty")


@pytest.mark.parametrize(
    ("extra", "param"),
    [
        ({"prompt_logprobs": 1}, "prompt_logprobs"),
        ({"use_beam_search": True}, "use_beam_search"),
        ({"logprob_token_ids": [1]}, "logprob_token_ids"),
        ({"echo": True}, "echo"),
        ({"top_logprobs": -1, "logprobs": True}, "top_logprobs"),
        ({"best_of": 3}, "best_of"),
        ({"uncertanty": {}, "temprature": 1}, "temprature"),
        ({"vllm_xargs": {"softspec": "x"}}, "vllm_xargs.softspec"),
        ({"uncertainty": {"detail": "all"}}, "uncertainty.detail"),
        ({"uncertainty": {"details": "all"}}, "uncertainty.details"),
        (
            {"uncertainty": {"policy": {"action": "abstain", "threshold": "0.4"}}},
            "uncertainty.policy.threshold",
        ),
        ({"uncertainty": {"policy": {"action": "abstain"}}}, "uncertainty.policy"),
        ({"uncertainty": {"policy": {"threshold": 0.0}}}, "uncertainty.policy"),
        ({"uncertainty": {"policy": {"metric": "mutual_information"}}}, "uncertainty.policy"),
        ({"uncertainty": {"policy": {"min_tokens": 3}}}, "uncertainty.policy"),
        ({"uncertainty": {"policy": {"min_tokens": 2.5}}}, "uncertainty.policy.min_tokens"),
        ({"uncertainty": {"policy": {"min_tokens": True}}}, "uncertainty.policy.min_tokens"),
        ({"uncertainty": {"policy": {"threshold": True}}}, "uncertainty.policy.threshold"),
        (
            {"uncertainty": {"policy": {"action": "abstain", "threshold": 1, "min_tokens": 0}}},
            "uncertainty.policy",
        ),
        ({"uncertainty": {"policy": {"action": "route", "threshold": 1}}}, "uncertainty.policy"),
        (
            {"uncertainty": {"policy": {"action": "abstain", "metric": "doubt", "threshold": 1}}},
            "uncertainty.policy",
        ),
    ],
)
def test_unsupported_fields_are_refused_by_name(extra: dict[str, Any], param: str) -> None:
    engine = FakeEngine([AGREED])

    with pytest.raises(openai.BadRequestError) as refusal:
        client_of(make_app(engine)).chat.completions.create(
            model=ENSEMBLE, messages=QUESTION, extra_body=extra
        )

    assert refusal.value.param == param
    assert refusal.value.type == "BadRequestError"
    assert param.rpartition(".")[2] in refusal.value.message
    assert engine.requests == []


def test_unknown_fields_that_ask_for_nothing_are_let_through() -> None:
    """Client libraries send null and false for features they do not use, and labels for bookkeeping."""
    answer = ask(FakeEngine([AGREED]), store=False, metadata={"team": "law"})

    assert answer.choices[0].finish_reason == "stop"


@pytest.mark.parametrize("model", ["base", f"{ENSEMBLE}/member-0"])
def test_single_models_refuse_the_extension(model: str) -> None:
    client = client_of(make_app(FakeEngine([AGREED])))

    with pytest.raises(openai.BadRequestError) as refusal:
        client.chat.completions.create(model=model, messages=QUESTION, extra_body={"uncertainty": {}})

    assert refusal.value.param == "uncertainty"


def test_echo_is_refused_for_completions_only_with_logprobs() -> None:
    assert ask_text(FakeEngine([AGREED]), echo=True).choices[0].text
    with pytest.raises(openai.BadRequestError, match="echo"):
        ask_text(FakeEngine([AGREED]), echo=True, logprobs=1)


@pytest.mark.parametrize("model", [None, ""], ids=["absent", "empty"])
def test_request_without_a_model_asks_the_only_ensemble(model: str | None) -> None:
    body = {"messages": QUESTION} if model is None else {"messages": QUESTION, "model": model}

    answer = TestClient(make_app(FakeEngine([AGREED]))).post("/v1/chat/completions", json=body).json()

    assert answer["model"] == ENSEMBLE
    assert answer["choices"][0]["uncertainty"]["decision"] == "answer"


@pytest.mark.parametrize("ensembles", [(), (ENSEMBLE, "doctors")], ids=["none", "two"])
def test_request_without_a_model_is_refused_where_there_is_not_one_ensemble(
    ensembles: tuple[str, ...],
) -> None:
    engine = FakeEngine([AGREED])
    app = make_app(engine, ensembles=ensembles)

    answer = TestClient(app).post("/v1/chat/completions", json={"messages": QUESTION})

    error = answer.json()["error"]
    assert (answer.status_code, error["param"], engine.requests) == (400, "model", [])
    assert ", ".join([*ensembles, f"{ENSEMBLE}/member-0", f"{ENSEMBLE}/member-1", "base"]) in error["message"]


def test_model_that_is_not_served_is_a_404_that_lists_what_is() -> None:
    with pytest.raises(openai.NotFoundError, match=f"`jurist` does not exist: expected one of {ENSEMBLE}, "):
        client_of(make_app(FakeEngine([AGREED]))).chat.completions.create(model="jurist", messages=QUESTION)


def test_lockstep_error_is_a_500_that_says_so() -> None:
    engine = FakeEngine([AGREED], failure=LockstepError("members came apart"))

    with pytest.raises(openai.InternalServerError, match="members came apart"):
        ask(engine)


def test_answer_without_telemetry_is_an_error_not_a_certain_answer() -> None:
    with pytest.raises(openai.InternalServerError, match="no uncertainty for choice 0"):
        ask(FakeEngine([AGREED], measures=False))


def events_of(engine: FakeEngine, **fields: Any) -> list[Any]:
    return list(ask(engine, stream=True, **fields))


def test_streamed_summary_equals_the_unstreamed_one() -> None:
    whole = ask(FakeEngine([TORN])).choices[0]

    chunks = events_of(FakeEngine([TORN]))

    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole.message.content
    assert chunks[-1].choices[0].uncertainty == whole.uncertainty
    assert not any(hasattr(chunk.choices[0], "uncertainty") for chunk in chunks[:-1])


def test_streamed_tokens_come_with_their_chunk() -> None:
    chunks = events_of(FakeEngine([AGREED]), uncertainty={"detail": "tokens"})

    told = [
        (chunk.choices[0].delta.content, [token["token"] for token in chunk.choices[0].uncertainty["tokens"]])
        for chunk in chunks
        if hasattr(chunk.choices[0], "uncertainty")
    ]
    assert told == [(f" w{number}", [f" w{number}"]) for number in range(4)]


def test_message_is_opened_with_its_role_also_when_the_first_token_crosses() -> None:
    chunks = events_of(FakeEngine([TORN[2:]]), uncertainty={"policy": STRICT, "detail": "tokens"})

    assert [chunk.choices[0].delta.role for chunk in chunks] == ["assistant", None]
    assert chunks[-1].choices[0].delta.refusal
    assert "tokens" not in chunks[-1].choices[0].uncertainty


def test_stream_stops_before_the_token_that_crosses_and_aborts_the_engine() -> None:
    engine = FakeEngine([TORN])

    chunks = events_of(engine, uncertainty={"policy": STRICT})

    last = chunks[-1].choices[0]
    assert [chunk.choices[0].delta.content for chunk in chunks[:-1]] == ["", " w0", " w1"]
    assert "max_epistemic 0.60 > 0.50" in last.delta.refusal
    assert (last.finish_reason, last.stop_reason) == ("stop", "abstained")
    assert (last.uncertainty["num_tokens"], last.uncertainty["decision"]) == (3, "abstain")
    assert engine.sent == 3
    assert engine.aborted


def test_stream_ends_with_done_also_when_it_abstains() -> None:
    client = TestClient(make_app(FakeEngine([TORN])))

    page = client.post(
        "/v1/chat/completions",
        json={"model": ENSEMBLE, "messages": QUESTION, "stream": True, "uncertainty": {"policy": STRICT}},
    ).text

    assert page.endswith("data: [DONE]\n\n")
    assert page.count("[DONE]") == 1


def test_abstaining_choice_falls_silent_while_the_others_go_on() -> None:
    engine = FakeEngine([TORN, AGREED])

    chunks = events_of(engine, n=2, uncertainty={"policy": STRICT})

    texts = ["", ""]
    for chunk in chunks:
        texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert texts == [" w0 w1", " w0 w1 w2 w3"]
    finished = {chunk.choices[0].index: chunk.choices[0].finish_reason for chunk in chunks}
    assert finished == {0: "stop", 1: "stop"}


def test_stream_ends_as_soon_as_no_choice_is_open() -> None:
    """A choice that abstained may still run in the engine; nobody waits for it."""
    engine = FakeEngine([AGREED, TORN + AGREED + AGREED])

    events_of(engine, n=2, uncertainty={"policy": STRICT})

    assert engine.aborted


@pytest.mark.parametrize("policy", [None, STRICT], ids=["answers", "abstains"])
def test_usage_is_reported_once_at_the_end(policy: dict[str, Any] | None) -> None:
    uncertainty = {"policy": policy} if policy else {}

    chunks = events_of(FakeEngine([TORN]), uncertainty=uncertainty, stream_options={"include_usage": True})

    generated = 3 if policy else 4
    assert [chunk.usage for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert chunks[-1].choices == []
    assert (chunks[-1].usage.prompt_tokens, chunks[-1].usage.completion_tokens) == (7, generated)


def test_streamed_text_completion_abstains_for_every_prompt_by_itself() -> None:
    engine = FakeEngine([TORN, AGREED])

    chunks = list(ask_text(engine, {"policy": STRICT}, prompt=["one", "two"], stream=True))

    finished = {chunk.choices[0].index: chunk.choices[0].finish_reason for chunk in chunks}
    assert finished == {0: "stop", 1: "stop"}


def test_missing_telemetry_in_a_stream_is_an_error_event() -> None:
    client = TestClient(make_app(FakeEngine([AGREED], measures=False)))

    page = client.post(
        "/v1/chat/completions", json={"model": ENSEMBLE, "messages": QUESTION, "stream": True}
    ).text

    events = [line.removeprefix("data: ") for line in page.splitlines() if line]
    assert "no uncertainty for choice 0" in json.loads(events[-2])["error"]["message"]
    assert events[-1] == "[DONE]"


def test_every_choice_of_a_request_is_counted_and_the_request_once() -> None:
    registry = CollectorRegistry()
    client = client_of(make_app(FakeEngine([TORN, AGREED, AGREED]), registry=registry))

    client.chat.completions.create(
        model=ENSEMBLE, messages=QUESTION, n=3, extra_body={"uncertainty": {"policy": STRICT}}
    )

    page = generate_latest(registry).decode()
    assert 'softspec_choices_total{decision="answer",model="jurists"} 2.0' in page
    assert 'softspec_choices_total{decision="abstain",model="jurists"} 1.0' in page
    assert 'softspec_requests_total{decision="abstain",model="jurists"} 1.0' in page
    assert 'softspec_requests_total{decision="answer",model="jurists"}' not in page


def test_answers_are_counted_by_decision() -> None:
    registry = CollectorRegistry()
    client = client_of(make_app(FakeEngine([TORN]), registry=registry))

    for policy in ({"action": "answer"}, STRICT):
        list(
            client.chat.completions.create(
                model=ENSEMBLE, messages=QUESTION, stream=True, extra_body={"uncertainty": {"policy": policy}}
            )
        )

    page = generate_latest(registry).decode()
    for kind in ("requests", "choices"):
        assert f'softspec_{kind}_total{{decision="answer",model="jurists"}} 1.0' in page
        assert f'softspec_{kind}_total{{decision="abstain",model="jurists"}} 1.0' in page
    assert 'softspec_time_to_first_token_seconds_count{model="jurists"} 2.0' in page


LIMITED = PolicyRules(
    Policy("abstain", "max_epistemic", 0.5, 2),
    ("big", "small"),
    allowed_actions=("abstain", "route"),
    allowed_upstreams=("small",),
)


@pytest.mark.parametrize(
    ("rules", "policy", "field", "message"),
    [
        (LIMITED, {"action": "answer"}, "action", "'answer' is not allowed: expected one of abstain, route"),
        (LIMITED, {"action": "route", "upstream": "big"}, "upstream", "is 'big': expected one of small"),
        (LIMITED, {"action": "route", "on_failure": "answer"}, "on_failure", "expected abstain or error"),
        (LIMITED, {"metric": "confidence", "threshold": 0.5}, "metric", "an ensemble that was calibrated"),
        (
            PolicyRules(Policy("abstain", "max_epistemic", 0.5, 2), allow_override=False),
            {"threshold": 0.1},
            "threshold",
            "threshold differs from the server's policy, which holds for every request: leave the policy out",
        ),
    ],
)
def test_request_beyond_a_limit_is_a_400_that_names_the_field(
    rules: PolicyRules, policy: dict[str, Any], field: str, message: str
) -> None:
    engine = FakeEngine([TORN])
    client = client_of(make_app(engine, rules=rules))

    with pytest.raises(openai.BadRequestError, match=message) as refusal:
        client.chat.completions.create(
            model=ENSEMBLE, messages=QUESTION, extra_body={"uncertainty": {"policy": policy}}
        )

    assert (refusal.value.param, engine.requests) == (f"uncertainty.policy.{field}", [])


@pytest.mark.parametrize(
    ("extension", "field", "message"),
    [
        (
            {"policy": {"treshold": 1}},
            "policy.treshold",
            "policy.treshold: unknown key; did you mean 'threshold'?",
        ),
        ({"polcy": {}}, "polcy", "uncertainty: polcy: unknown key; did you mean 'policy'?"),
        ({"x": 1}, "x", "uncertainty: x: unknown key; expected one of detail, policy"),
    ],
)
def test_misspelt_field_is_told_what_was_probably_meant(
    extension: dict[str, Any], field: str, message: str
) -> None:
    with pytest.raises(openai.BadRequestError, match=re.escape(message)) as refusal:
        ask(FakeEngine([AGREED]), extension)

    assert refusal.value.param == f"uncertainty.{field}"
