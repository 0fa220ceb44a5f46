"""A stream that is held back: every chunk still comes, in its order, and nothing of an answer before it is safe."""

import json
from typing import Any

import pytest
from starlette.testclient import TestClient

from softspec.engine.trace import ChoiceTrace, RequestTrace
from softspec.server.chat.streamed_choice import StreamedChoice
from softspec.server.policy.policy import Policy
from tests.support.fake_engine import AGREED, ENSEMBLE, TORN, UNIFORM, FakeEngine, make_app

QUESTION = [{"role": "user", "content": "Is it allowed?"}]
CALM = {"action": "abstain", "metric": "max_epistemic", "threshold": 5.0}
STRICT = {"action": "abstain", "metric": "max_epistemic", "threshold": 0.5}
LONG = AGREED + AGREED + AGREED


def events(
    engine: FakeEngine, policy: dict[str, Any], path: str = "chat/completions", **fields: Any
) -> list[str]:
    asked = {"messages": QUESTION} if path == "chat/completions" else {"prompt": ["a", "b"]}
    uncertainty = {"policy": policy, "detail": fields.pop("detail", "summary")}
    body = {"model": ENSEMBLE, "stream": True, "uncertainty": uncertainty, **asked, **fields}
    page = TestClient(make_app(engine)).post(f"/v1/{path}", json=body).text
    return [event.removeprefix("data: ") for event in page.split("\n\n") if event]


def by_choice(sent: list[str]) -> dict[int | None, list[str]]:
    """The events of every choice, in their order; those that belong to none under None."""
    found: dict[int | None, list[str]] = {}
    for event in sent:
        choices = json.loads(event)["choices"] if event != "[DONE]" else []
        found.setdefault(choices[0]["index"] if choices else None, []).append(event)
    return found


@pytest.mark.parametrize("held", [1, 2, 4, 11, 12, 13, 99])
@pytest.mark.parametrize("detail", ["summary", "tokens", "none"])
@pytest.mark.parametrize(
    "options",
    [None, {"include_usage": True}, {"include_usage": True, "continuous_usage_stats": True}],
    ids=["no usage", "usage at the end", "usage all the time"],
)
def test_held_answer_is_the_same_to_the_last_byte(held: int, detail: str, options: Any) -> None:
    fields = {"detail": detail, "stream_options": options}

    at_once = events(FakeEngine([LONG]), CALM, **fields)
    later = events(FakeEngine([LONG]), {**CALM, "hold_tokens": held}, **fields)

    assert at_once == later


@pytest.mark.parametrize("path", ["chat/completions", "completions"])
def test_every_choice_is_held_for_itself_and_keeps_its_order(path: str) -> None:
    scripts = [LONG, AGREED, LONG, AGREED]

    at_once = events(FakeEngine(scripts), CALM, path, n=2 if path == "completions" else 4)
    later = events(FakeEngine(scripts), {**CALM, "hold_tokens": 6}, path, n=2 if path == "completions" else 4)

    assert by_choice(at_once) == by_choice(later)
    assert at_once != later


@pytest.mark.parametrize("held", [3, 4, 16])
def test_nothing_of_an_answer_is_sent_that_abstains_while_it_is_held(held: int) -> None:
    sent = events(FakeEngine([TORN]), {**STRICT, "hold_tokens": held}, detail="tokens")

    first, last = (json.loads(event)["choices"][0] for event in sent[:-1])
    assert first["delta"] == {"role": "assistant", "content": ""}
    assert last["uncertainty"]["decided_at"] == 3
    assert last["delta"].keys() == {"refusal"}
    assert not any(f"w{number}" in event for event in sent for number in range(4))
    assert sent[-1] == "[DONE]"


def test_answer_that_abstains_later_was_sent_so_far() -> None:
    sent = events(FakeEngine([TORN]), {**STRICT, "hold_tokens": 2})

    texts = [json.loads(event)["choices"][0]["delta"].get("content") for event in sent[:-1]]
    assert texts == ["", " w0", " w1", None]


@pytest.mark.parametrize("held", [0, 1, 3])
def test_tokens_are_sent_with_the_one_that_makes_them_safe(held: int) -> None:
    request = RequestTrace({0: ChoiceTrace(UNIFORM)})
    choice = StreamedChoice(0, Policy("abstain", "max_epistemic", 5.0, hold_tokens=held), request)

    sent = []
    for number, token in enumerate(LONG, start=1):
        request.choices[0].tokens.append(token)
        part = {"index": 0, "delta": {"content": str(number)}, "finish_reason": None}
        sent.append(len(choice.take({}, part)))

    before = max(held, 1) - 1
    assert sent == [*[0] * before, before + 1, *[1] * (len(LONG) - before - 1)]
