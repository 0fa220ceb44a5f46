"""Decisions as the official client asks and reads them, around a scripted engine."""

import asyncio
import json
import math
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from openai.types.decision import (
    AnswerAnswerResourceChoice,
    AnswerAnswerResourcePredicate,
    AnswerAnswerResourceRefusal,
    AnswerAnswerResourceScore,
)
from prometheus_client import CollectorRegistry, generate_latest
from starlette.testclient import TestClient

from softspec.maths.answer import METRICS, OF_DECISION
from softspec.maths.options import OptionsUncertainty
from softspec.server import decisions
from softspec.server.policy.policy import Policy
from softspec.server.policy.rules import PolicyRules
from tests.support.fake_decisions import FakeScorer, decisions_app
from tests.support.fake_engine import ENSEMBLE, client_of

PREDICATE: Any = {"type": "predicate", "name": "allowed", "instructions": "It is allowed."}
CHOICE: Any = {
    "type": "choice",
    "instructions": "Which colour?",
    "choices": [{"value": "red"}, {"value": "green"}, {"value": True}],
}
SCORE: Any = {
    "type": "score",
    "name": "urgency",
    "instructions": "How urgent?",
    "levels": [{"label": "low"}, {"label": "medium"}, {"label": "high"}],
}
TABLE: dict[str, tuple[float, ...]] = {
    "yes": (0.6, 0.6),
    "no": (0.2, 0.2),
    "red": (0.8, 0.1),
    "green": (0.1, 0.7),
    "true": (0.1, 0.2),
    "low": (0.1, 0.1),
    "medium": (0.2, 0.2),
    "high": (0.1, 0.1),
}
STRICT = {"action": "abstain", "metric": "epistemic", "threshold": 0.1}


def scorer() -> FakeScorer:
    return FakeScorer(dict(TABLE))


def ask(engine: FakeScorer, *questions: Any, policy: Policy | None = None, **given: Any) -> Any:
    """The official client's answer."""
    given = {"model": ENSEMBLE, "input": "May I record a call?", **given}
    with client_of(decisions_app(engine, policy)) as client:
        return client.decisions.create(questions=questions, **given)


def refused(engine: FakeScorer, *questions: Any, app: Any = None, **given: Any) -> tuple[str, str]:
    """Which field a 400 names, and what it says; the engine was not asked."""
    body = {"model": ENSEMBLE, "input": "?", "questions": list(questions or [PREDICATE]), **given}
    answer = TestClient(app or decisions_app(engine)).post("/v1/decisions", json=body)
    assert answer.status_code == 400, answer.text
    assert engine.asked == []
    error = answer.json()["error"]
    assert "\n" not in error["message"]
    return error["param"], error["message"]


def test_official_client_gets_every_kind_of_answer_with_its_own_types() -> None:
    decision = ask(scorer(), PREDICATE, CHOICE, SCORE)

    predicate, choice, score = decision.answers
    assert isinstance(predicate, AnswerAnswerResourcePredicate)
    assert (predicate.name, predicate.probability) == ("allowed", pytest.approx(0.75))
    assert isinstance(choice, AnswerAnswerResourceChoice)
    assert (choice.name, choice.choice, choice.confidence) == (None, "red", pytest.approx(0.45))
    assert [(each.value, each.probability) for each in choice.probabilities] == [
        ("red", pytest.approx(0.45)),
        ("green", pytest.approx(0.4)),
        (True, pytest.approx(0.15)),
    ]
    assert isinstance(score, AnswerAnswerResourceScore)
    assert (score.score, score.confidence) == (pytest.approx(1.0), pytest.approx(0.5))
    assert [(each.label, each.value) for each in score.probabilities] == [
        ("low", 0),
        ("medium", 1),
        ("high", 2),
    ]
    assert decision.model == ENSEMBLE


def test_asynchronous_client_gets_the_same() -> None:
    async def create() -> Any:
        transport = httpx2.ASGITransport(app=decisions_app(scorer()))
        async with httpx2.AsyncClient(transport=transport) as http:
            client = openai.AsyncOpenAI(base_url="http://server/v1", api_key="none", http_client=http)
            return await client.decisions.create(model=ENSEMBLE, input="x", questions=[CHOICE])

    assert asyncio.run(create()).answers == ask(scorer(), CHOICE).answers


def test_answer_carries_what_the_members_think_of_the_options() -> None:
    answer = ask(scorer(), CHOICE).answers[0]

    told = answer.uncertainty
    inside = [[0.8, 0.1, 0.1], [0.1, 0.7, 0.2]]
    assert list(told) == [
        "unit",
        "total_entropy",
        "aleatoric_entropy",
        "epistemic",
        "disagreement",
        "member_probabilities",
        "label_mass",
        "confidence",
        "decision",
        "reason",
    ]
    assert told["label_mass"] == pytest.approx(1.0)
    assert told["member_probabilities"] == [pytest.approx(member) for member in inside]
    assert told["total_entropy"] == pytest.approx(told["aleatoric_entropy"] + told["epistemic"])
    assert told["total_entropy"] == pytest.approx(-sum(p * math.log(p) for p in (0.45, 0.4, 0.15)))
    assert told["disagreement"] == pytest.approx(0.5)
    assert (told["unit"], told["confidence"], told["decision"], told["reason"]) == (
        "nats",
        None,
        "answer",
        None,
    )


def test_usage_counts_every_prompt_and_every_option() -> None:
    engine = scorer()

    usage = ask(engine, PREDICATE, SCORE).usage

    prompts, options = engine.asked[0]["prompts"], engine.asked[0]["options"]
    assert usage.input_tokens == sum(map(len, prompts))
    assert usage.output_tokens == sum(len(option) for each in options for option in each)
    assert usage.total_tokens == usage.input_tokens + usage.output_tokens


def test_four_hundred_questions_are_one_round_of_the_engine() -> None:
    engine = scorer()

    decision = ask(engine, *[{**PREDICATE, "name": str(number)} for number in range(400)])

    assert [answer.name for answer in decision.answers] == [str(number) for number in range(400)]
    assert len(engine.asked) == 1


def test_priority_and_the_name_of_the_request_reach_the_engine() -> None:
    engine = scorer()

    with client_of(decisions_app(engine)) as client:
        raw = client.decisions.with_raw_response.create(
            model=ENSEMBLE,
            input="x",
            questions=[PREDICATE],
            extra_headers={"x-request-id": "mine"},
            extra_body={"priority": -3},
        )

    assert raw.headers["x-request-id"] == "mine"
    assert "mine" in engine.asked[0]["request_id"]
    assert engine.asked[0]["priority"] == -3


def test_request_that_names_no_model_asks_the_only_ensemble() -> None:
    engine = scorer()

    answer = TestClient(decisions_app(engine)).post(
        "/v1/decisions", json={"input": "x", "questions": [PREDICATE]}
    )

    assert (answer.status_code, answer.json()["model"]) == (200, ENSEMBLE)


def test_member_alone_is_an_ensemble_of_one() -> None:
    answer = ask(scorer(), CHOICE, model=f"{ENSEMBLE}/member-0").answers[0]

    assert answer.choice == "red"
    assert (answer.uncertainty["epistemic"], answer.uncertainty["disagreement"]) == (0, 0)
    assert answer.uncertainty["member_probabilities"] == [pytest.approx([0.8, 0.1, 0.1])]


def test_servers_policy_is_not_about_members() -> None:
    policy = Policy("abstain", "total_entropy", 0.0)

    assert ask(scorer(), CHOICE, model=f"{ENSEMBLE}/member-0", policy=policy).answers[0].type == "choice"


def test_base_is_refused_by_name() -> None:
    field, message = refused(scorer(), model="base")

    assert field == "model"
    assert ENSEMBLE in message


def test_model_that_is_not_served_is_not_found() -> None:
    with pytest.raises(openai.NotFoundError):
        ask(scorer(), PREDICATE, model="nobody")


# Policies


def test_uncertain_answer_is_withheld_and_the_others_are_sent() -> None:
    predicate, choice = ask(
        scorer(), PREDICATE, CHOICE, extra_body={"uncertainty": {"policy": STRICT}}
    ).answers

    assert isinstance(predicate, AnswerAnswerResourcePredicate)
    assert isinstance(choice, AnswerAnswerResourceRefusal)
    assert choice.name is None
    told: Any = (choice.model_extra or {})["uncertainty"]
    assert told["decision"] == "abstain"
    assert told["reason"].startswith("epistemic 0.2")
    assert told["reason"].endswith("> 0.10")


def test_withheld_answer_tells_nothing_of_its_options() -> None:
    answer = ask(scorer(), CHOICE, extra_body={"uncertainty": {"policy": STRICT}}).answers[0]

    sent = json.loads(answer.to_json())
    assert set(sent) == {"type", "name", "uncertainty"}
    assert "member_probabilities" not in sent["uncertainty"]
    assert "red" not in answer.to_json()


@pytest.mark.parametrize(
    ("metric", "field"),
    [
        ("epistemic", "epistemic"),
        ("max_epistemic", "epistemic"),
        ("mutual_information", "epistemic"),
        ("total_entropy", "total_entropy"),
        ("aleatoric_entropy", "aleatoric_entropy"),
        ("disagreement", "disagreement"),
        ("max_disagreement", "disagreement"),
    ],
)
def test_threshold_acts_above_the_number_that_is_reported(metric: str, field: str) -> None:
    value = ask(scorer(), CHOICE).answers[0].uncertainty[field]

    kinds = []
    for threshold in (value, math.nextafter(value, 0)):
        policy = {"action": "abstain", "metric": metric, "threshold": threshold}
        kinds.append(ask(scorer(), CHOICE, extra_body={"uncertainty": {"policy": policy}}).answers[0].type)

    assert kinds == ["choice", "refusal"]


def test_servers_policy_holds_where_the_request_says_nothing() -> None:
    """Its `min_tokens` counts tokens, of which a decision has none: it is judged all the same."""
    policy = Policy("abstain", "epistemic", 0.1, min_tokens=5)

    assert ask(scorer(), CHOICE, policy=policy).answers[0].type == "refusal"
    lenient = {"uncertainty": {"policy": {"action": "answer"}}}
    assert ask(scorer(), CHOICE, policy=policy, extra_body=lenient).answers[0].type == "choice"


def test_pinned_policy_may_not_be_loosened() -> None:
    engine = scorer()
    app = decisions_app(engine, Policy("abstain", "epistemic", 0.1), pinned=True)

    field, _ = refused(engine, app=app, uncertainty={"policy": {"threshold": 0.5}})

    assert field == "uncertainty.policy.threshold"


@pytest.mark.parametrize(
    ("extension", "field"),
    [
        ({"detail": "tokens"}, "uncertainty.detail"),
        ({"detial": "none"}, "uncertainty.detial"),
        ({"policy": {**STRICT, "min_tokens": 2}}, "uncertainty.policy.min_tokens"),
        ({"policy": {**STRICT, "hold_tokens": 4}}, "uncertainty.policy.hold_tokens"),
        ({"policy": {**STRICT, "metric": "max_entropy"}}, "uncertainty.policy"),
        ({"policy": {"action": "route", "threshold": 1}}, "uncertainty.policy"),
    ],
)
def test_extension_that_cannot_be_honoured_is_refused(extension: Any, field: str) -> None:
    assert refused(scorer(), uncertainty=extension)[0] == field


def test_server_that_routes_refuses_by_name() -> None:
    rules = PolicyRules(Policy("route", "epistemic", 0.1), upstreams=("large",))
    engine = scorer()

    field, message = refused(engine, app=decisions_app(engine, rules=rules))

    assert field == "uncertainty.policy.action"
    assert "'route'" in message
    abstaining = {"uncertainty": {"policy": {"action": "abstain"}}}
    body = {"input": "?", "questions": [CHOICE], **abstaining}
    answer = TestClient(decisions_app(engine, rules=rules)).post("/v1/decisions", json=body)
    assert answer.json()["answers"][0]["type"] == "refusal"


def test_every_metric_of_a_policy_is_a_number_of_a_decision() -> None:
    numbers = {field.name for field in fields(OptionsUncertainty)}

    assert {OF_DECISION.get(metric, metric) for metric in METRICS} <= numbers


def test_policy_fields_that_change_nothing_may_stay() -> None:
    policy = {**STRICT, "min_tokens": 1, "hold_tokens": 0}

    assert (
        ask(scorer(), PREDICATE, extra_body={"uncertainty": {"policy": policy}}).answers[0].type
        == "predicate"
    )


def test_detail_none_leaves_the_decision() -> None:
    answer = ask(scorer(), CHOICE, extra_body={"uncertainty": {"detail": "none"}}).answers[0]

    assert answer.uncertainty == {"decision": "answer", "reason": None}


def test_extension_is_refused_for_a_single_member() -> None:
    field, _ = refused(scorer(), model=f"{ENSEMBLE}/member-0", uncertainty={"detail": "none"})

    assert field == "uncertainty"


def test_answers_are_counted_by_model_and_decision() -> None:
    registry = CollectorRegistry()
    with client_of(decisions_app(scorer(), registry=registry)) as client:
        client.decisions.create(
            model=ENSEMBLE,
            input="x",
            questions=[PREDICATE, CHOICE],
            extra_body={"uncertainty": {"policy": STRICT}},
        )

    page = generate_latest(registry).decode()
    assert f'softspec_decisions_total{{decision="answer",model="{ENSEMBLE}"}} 1.0' in page
    assert f'softspec_decisions_total{{decision="abstain",model="{ENSEMBLE}"}} 1.0' in page


# Numbers


def test_length_normalised_options_are_compared_by_the_mean_of_a_token() -> None:
    engine = FakeScorer({"a": (0.5, 0.5), "bb": (0.25, 0.25)})
    question = {"type": "choice", "instructions": "?", "choices": [{"value": "a"}, {"value": "bb"}]}

    plain = ask(engine, question).answers[0]
    fair = ask(engine, question, extra_body={"length_normalise": True}).answers[0]

    assert [each.probability for each in plain.probabilities] == pytest.approx([2 / 3, 1 / 3])
    assert [each.probability for each in fair.probabilities] == pytest.approx([0.5, 0.5])
    assert fair.uncertainty["label_mass"] == pytest.approx(0.75)


def test_weights_fixed_at_every_token_take_the_mixtures_own_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is a product over tokens there, which the members' sums do not tell."""
    from tests.support import fake_decisions

    engine = FakeScorer(dict(TABLE), weights_rule="fixed")
    real = FakeScorer._measured

    def measured(self: FakeScorer, model: str, ids: Any) -> Any:
        found = real(self, model, ids)
        return fake_decisions.Measured(math.log(0.3), found.member_log_probs, found.num_tokens)

    monkeypatch.setattr(FakeScorer, "_measured", measured)
    answer = ask(engine, CHOICE).answers[0]

    assert [each.probability for each in answer.probabilities] == pytest.approx([1 / 3] * 3)


def test_options_that_no_member_can_say_are_a_mistake_of_the_request() -> None:
    engine = FakeScorer({"yes": (0.0, 0.0), "no": (0.0, 0.0)})

    with pytest.raises(openai.BadRequestError, match="probability 0") as caught:
        ask(engine, PREDICATE)

    assert caught.value.param == "questions.0"


def test_number_that_is_missing_is_a_fault_of_the_engine() -> None:
    engine = FakeScorer({"yes": (math.nan, 0.5), "no": (0.5, 0.5)})
    engine.table["yes"] = (math.nan, math.nan)

    answer = TestClient(decisions_app(engine), raise_server_exceptions=False).post(
        "/v1/decisions", json={"input": "x", "questions": [PREDICATE]}
    )

    assert answer.status_code == 500
    assert "no number" in answer.json()["error"]["message"]


def test_text_of_any_script_may_be_an_option() -> None:
    texts = ["å", "日本", "🦊", "e\u0301", "é"]
    engine = FakeScorer(dict.fromkeys(texts, (0.1, 0.1)))
    question = {"type": "choice", "instructions": "?", "choices": [{"value": text} for text in texts]}

    answer = ask(engine, question).answers[0]

    assert [each.value for each in answer.probabilities] == texts


def test_shown_answers_have_the_fields_of_real_ones() -> None:
    document = (Path(decisions.__file__).parent / "README.md").read_text(encoding="utf-8")
    shown = [
        json.loads(text)
        for text in re.findall(r"^```\n(\{\"(?:answers|type)\".*?)^```$", document, re.M | re.S)
    ]

    body = {"model": ENSEMBLE, "input": "?", "questions": [CHOICE]}
    http = TestClient(decisions_app(scorer()))
    real = [
        http.post("/v1/decisions", json={**body, "uncertainty": {"policy": policy}}).json()
        for policy in (None, STRICT)
    ]

    assert outline(shown[0]) == outline(real[0])
    assert outline(shown[1]) == outline(real[1]["answers"][0])


def outline(value: Any) -> Any:
    """The names in an answer, in their order."""
    if isinstance(value, dict):
        return [(name, outline(inside)) for name, inside in value.items()]
    return outline(value[0]) if isinstance(value, list) else None
