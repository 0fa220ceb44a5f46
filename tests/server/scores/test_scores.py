"""Scores of answers that exist already: what is asked of the engine, what comes back, and what is refused by name."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import openai
import pytest
from fastapi import FastAPI
from prometheus_client import CollectorRegistry
from starlette.testclient import TestClient

from softspec.engine.trace import ChoiceTrace
from softspec.errors import ConfigError
from softspec.maths.answer import summarise
from softspec.server.policy.policy import Policy
from softspec.server.scores.routes import add_score_routes
from softspec.server.scores.scorer import Scoring
from tests.support.fake_engine import ENSEMBLE, TORN, UNIFORM, FakeEngine, client_of, decode, make_app, token

HELLO = [{"role": "user", "content": "hello"}]
END_OF_CHAT, END_OF_TEXT = 7, 8


@dataclass
class FakeScorer:
    """Thinks of every answer what `TORN` tells of its first tokens; an answer has a token for each letter."""

    asked: list[tuple[Any, ...]] = field(default_factory=list)

    async def chat_prompt(self, messages: Sequence[Any], *, model: str, **fields: Any) -> list[int]:
        self.asked.append(("chat", model, fields))
        return [1, 2, 3]

    async def chat_end(self, *, model: str, **fields: Any) -> int:
        return END_OF_CHAT

    async def text_prompt(self, prompt: str | Sequence[int]) -> list[int]:
        return list(prompt.encode()) if isinstance(prompt, str) else list(prompt)

    def answer(self, text: str, ended: bool, end: int | None) -> list[int]:
        if text == "endless":
            raise ConfigError("a text of 7 characters is longer than the model's 1 tokens")
        return [*text.encode(), *([END_OF_TEXT if end is None else end] if ended else [])]

    async def score(
        self, model: str, prompt: Sequence[int], answers: Sequence[Sequence[int]], name: str, priority: int
    ) -> list[ChoiceTrace]:
        self.asked.append((model, list(prompt), [list(answer) for answer in answers], priority))
        return [
            ChoiceTrace(log_weights=UNIFORM, tokens=[token(0), *TORN[1 : len(answer)]]) for answer in answers
        ]


@pytest.fixture
def scorer() -> FakeScorer:
    return FakeScorer()


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def app(scorer: FakeScorer, registry: CollectorRegistry) -> FastAPI:
    app = make_app(FakeEngine([TORN]), Policy("abstain", "max_epistemic", 0.0), registry)
    add_score_routes(app, checks=())
    app.state.softspec_scoring = Scoring(
        scorer.text_prompt, scorer.chat_prompt, scorer.chat_end, scorer.answer, scorer.score
    )
    return app


@pytest.fixture
def http(app: FastAPI) -> TestClient:
    return TestClient(app)


def test_each_answer_has_the_numbers_of_its_tokens(http: TestClient) -> None:
    answer = http.post("/v1/uncertainty", json={"prompt": "hello", "answers": ["abc", "a"]}).json()

    first, second = answer["scores"]
    expected = asdict(summarise(TORN, UNIFORM))
    assert {key: first[key] for key in expected} == json.loads(json.dumps(expected))
    assert (first["index"], second["index"]) == (0, 1)
    assert (first["num_tokens"], second["num_tokens"]) == (4, 2)
    assert (first["unit"], first["confidence"]) == ("nats", None)
    assert first.keys() == {"index", "unit", "confidence", *expected}
    assert answer["usage"] == {"prompt_tokens": 5, "completion_tokens": 6, "total_tokens": 11}
    assert (answer["object"], answer["model"]) == ("uncertainty.scores", ENSEMBLE)


def test_tokens_come_on_request_as_those_of_a_generated_answer(http: TestClient) -> None:
    answer = http.post(
        "/v1/uncertainty", json={"prompt": "hello", "answers": ["abc"], "detail": "tokens"}
    ).json()

    tokens = answer["scores"][0]["tokens"]
    assert [each["token"] for each in tokens] == [decode(number) for number in range(4)]
    assert tokens[2]["epistemic"] == TORN[2].epistemic


@pytest.mark.parametrize(
    ("asked", "prompt", "answers"),
    [
        ({"prompt": "hi", "answers": ["a"]}, [104, 105], [[97, END_OF_TEXT]]),
        ({"prompt": [5, 6], "answers": ["a"]}, [5, 6], [[97, END_OF_TEXT]]),
        ({"messages": HELLO, "answers": ["a", ""]}, [1, 2, 3], [[97, END_OF_CHAT], [END_OF_CHAT]]),
        ({"messages": HELLO, "answers": ["a"], "finish_reason": "length"}, [1, 2, 3], [[97]]),
    ],
)
def test_prompt_and_answers_are_what_would_have_been_generated(
    http: TestClient, scorer: FakeScorer, asked: Any, prompt: list[int], answers: list[list[int]]
) -> None:
    assert http.post("/v1/uncertainty", json=asked).status_code == 200

    assert scorer.asked[-1] == (ENSEMBLE, prompt, answers, 0)


def test_fields_of_the_conversation_reach_the_template(http: TestClient, scorer: FakeScorer) -> None:
    fields = {"tools": [{"type": "function"}], "chat_template_kwargs": {"mood": None}, "documents": None}

    http.post("/v1/uncertainty", json={"messages": HELLO, "answers": ["a"], **fields})

    assert scorer.asked[0] == ("chat", ENSEMBLE, {name: fields[name] for name in list(fields)[:2]})


def test_a_member_is_scored_alone_and_the_base_refused(http: TestClient, scorer: FakeScorer) -> None:
    body = {"prompt": "hi", "answers": ["a"]}

    member = http.post("/v1/uncertainty", json={**body, "model": f"{ENSEMBLE}/member-1"})
    base = http.post("/v1/uncertainty", json={**body, "model": "base"})

    assert (member.status_code, member.json()["model"]) == (200, f"{ENSEMBLE}/member-1")
    assert (base.status_code, base.json()["error"]["param"]) == (400, "model")


def test_a_model_that_is_not_served_is_a_404(http: TestClient) -> None:
    answer = http.post("/v1/uncertainty", json={"prompt": "hi", "answers": ["a"], "model": "other"})

    assert answer.status_code == 404
    assert f"expected one of {ENSEMBLE}" in answer.json()["error"]["message"]


@pytest.mark.parametrize("name", [None, "mine"])
def test_the_answer_has_the_callers_name_for_the_request(http: TestClient, name: str | None) -> None:
    headers = {"x-request-id": name} if name else {}

    answer = http.post("/v1/uncertainty", json={"prompt": "hi", "answers": ["a"]}, headers=headers)

    assert answer.json()["id"] == f"score-{answer.headers['x-request-id']}"
    assert name in (None, answer.headers["x-request-id"])


def test_scored_answers_are_counted_apart_from_written_ones(
    http: TestClient, registry: CollectorRegistry
) -> None:
    http.post("/v1/uncertainty", json={"prompt": "hi", "answers": ["a", "b"]})

    assert registry.get_sample_value("softspec_scored_answers_total", {"model": ENSEMBLE}) == 2
    assert (
        registry.get_sample_value("softspec_requests_total", {"model": ENSEMBLE, "decision": "answer"})
        is None
    )


def test_minus_infinity_is_sent_as_json(http: TestClient, scorer: FakeScorer) -> None:
    async def impossible(*_: Any) -> list[ChoiceTrace]:
        return [ChoiceTrace(log_weights=UNIFORM, tokens=[token(0, members=(-math.inf, -1.0))])]

    http.app.state.softspec_scoring = Scoring(  # type: ignore[attr-defined]
        scorer.text_prompt, scorer.chat_prompt, scorer.chat_end, scorer.answer, impossible
    )

    answer = http.post("/v1/uncertainty", json={"prompt": "hi", "answers": ["a"]})

    assert json.loads(answer.text, parse_constant=pytest.fail)["scores"][0]["member_log_probs"][0] == -9999


BODY = {"prompt": "hi", "answers": ["a"]}


@pytest.mark.parametrize(
    ("body", "param", "told"),
    [
        ({"prompt": "hi"}, "answers", "answers: missing"),
        ({**BODY, "answers": []}, "answers", "at least 1 item"),
        ({**BODY, "answers": ["a"] * 65}, "answers", "at most 64 items"),
        ({**BODY, "answers": ["a", 5]}, "answers.1", "expected text (found 5)"),
        ({**BODY, "answers": "a"}, "answers", "expected a list"),
        ({**BODY, "answers": ["a", "endless"]}, "answers.1", "longer than the model's"),
        ({**BODY, "answers": ["a", ""], "finish_reason": "length"}, "answers.1", "is empty"),
        ({**BODY, "messages": HELLO}, "messages", "either 'messages' or 'prompt'"),
        ({"answers": ["a"]}, "messages", "either 'messages' or 'prompt'"),
        ({**BODY, "prompt": ""}, "prompt", "text that is not empty"),
        ({**BODY, "prompt": [True]}, "prompt.0", "a whole number"),
        ({**BODY, "prompt": [-1]}, "prompt.0", "at least 0"),
        ({"messages": [], "answers": ["a"]}, "messages", "at least 1 item"),
        ({"messages": ["hi"], "answers": ["a"]}, "messages.0", "an object"),
        ({**BODY, "tools": []}, "tools", "'tools' needs 'messages'"),
        ({**BODY, "detail": "none"}, "detail", "'summary' or 'tokens'"),
        ({**BODY, "finish_reason": "tool_calls"}, "finish_reason", "'stop' or 'length'"),
        ({**BODY, "answer": "a"}, "answer", "did you mean 'answers'?"),
        ({**BODY, "temperature": 1}, "temperature", "would have no effect"),
        ({**BODY, "stream": True}, "stream", "would have no effect"),
        ({**BODY, "cache_salt": "x"}, "cache_salt", "shared with other requests"),
        ({**BODY, "response_format": {"type": "json_object"}}, "response_format", "without constraints"),
        ({**BODY, "uncertainty": {"detail": "tokens"}}, "uncertainty", "'detail' stands by itself"),
        ({**BODY, "priority": 1.5}, "priority", "a whole number"),
        ([BODY], None, "an object"),
        ("hi", None, "an object"),
        (None, None, ""),
    ],
)
def test_a_mistake_is_a_400_that_names_its_field(
    http: TestClient, body: Any, param: str | None, told: str
) -> None:
    answer = http.post(
        "/v1/uncertainty", content=json.dumps(body), headers={"content-type": "application/json"}
    )

    if body is None:
        assert answer.status_code in (400, 422)
        return
    error = answer.json()["error"]
    assert (answer.status_code, error["param"] or None) == (400, param)
    assert told in error["message"]
    assert "\n" not in error["message"]


@pytest.mark.parametrize(
    "text", ['{"prompt": "\\ud800", "answers": ["a"]}', '{"prompt": "a", "answers": [NaN]}']
)
def test_what_is_no_json_is_refused(http: TestClient, text: str) -> None:
    answer = http.post("/v1/uncertainty", content=text, headers={"content-type": "application/json"})

    assert answer.status_code in (400, 422)


@pytest.mark.parametrize(
    "harmless", [{"user": "me"}, {"metadata": {"a": "b"}}, {"stream": False}, {"n": None}, {"tools": None}]
)
def test_what_changes_nothing_passes(http: TestClient, harmless: dict[str, Any]) -> None:
    assert http.post("/v1/uncertainty", json={**BODY, **harmless}).status_code == 200


def test_the_official_client_asks_by_its_post_method(app: FastAPI) -> None:
    class Score(openai.BaseModel):
        mutual_information: float

    class Scores(openai.BaseModel):
        scores: list[Score]

    body = {"messages": HELLO, "answers": ["abc"]}

    typed = client_of(app).post("/uncertainty", body=body, cast_to=Scores)
    plain: Any = client_of(app).post("/uncertainty", body=body, cast_to=object)

    expected = pytest.approx(summarise(TORN, UNIFORM).mutual_information)
    assert typed.scores[0].mutual_information == expected
    assert plain["scores"][0]["mutual_information"] == expected


def test_the_schema_tells_the_fields_of_the_body(app: FastAPI) -> None:
    operation = app.openapi()["paths"]["/v1/uncertainty"]["post"]

    schema = operation["requestBody"]["content"]["application/json"]["schema"]
    assert {"messages", "prompt", "answers", "finish_reason", "detail"} <= schema["properties"].keys()
