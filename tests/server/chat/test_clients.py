"""What the official client's own parsers make of an answer that was withheld: a refusal, as from OpenAI's models."""

from typing import Any

import pytest
from pydantic import BaseModel

from softspec.server.policy.policy import Policy
from tests.support import fake_engine
from tests.support.fake_engine import ENSEMBLE, TORN, FakeEngine, client_of, make_app

QUESTION: Any = [{"role": "user", "content": "Which colour?"}]
PIECES = ('{"name"', ': "', "green", '"}')
TOOL: Any = {
    "type": "function",
    "function": {
        "name": "paint",
        "strict": True,
        "parameters": {"type": "object", "properties": {}, "additionalProperties": False},
    },
}


class Colour(BaseModel):
    name: str


@pytest.fixture
def completions(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The client's chat completions; the answer is JSON that the policy ends in its middle."""
    monkeypatch.setattr(fake_engine, "decode", PIECES.__getitem__)
    return client_of(make_app(FakeEngine([TORN]), Policy("abstain", "max_epistemic", 0.5))).chat.completions


@pytest.mark.parametrize("tools", [{}, {"tools": [TOOL]}], ids=["no tools", "tools"])
def test_parse_gives_the_refusal_and_the_numbers(completions: Any, tools: dict[str, Any]) -> None:
    answer = completions.parse(model=ENSEMBLE, messages=QUESTION, response_format=Colour, **tools)

    choice = answer.choices[0]
    assert (choice.message.parsed, choice.message.content) == (None, None)
    assert "at token 3" in choice.message.refusal
    assert (choice.finish_reason, choice.stop_reason) == ("stop", "abstained")
    assert choice.uncertainty["decided_at"] == 3


def test_answer_that_is_not_withheld_is_parsed(completions: Any) -> None:
    lenient = {"uncertainty": {"policy": {"action": "answer"}}}

    answer = completions.parse(model=ENSEMBLE, messages=QUESTION, response_format=Colour, extra_body=lenient)

    assert answer.choices[0].message.parsed == Colour(name="green")


@pytest.mark.parametrize("response_format", [{}, {"response_format": Colour}], ids=["text", "schema"])
def test_stream_helper_tells_of_the_refusal(completions: Any, response_format: dict[str, Any]) -> None:
    with completions.stream(model=ENSEMBLE, messages=QUESTION, **response_format) as stream:
        events = list(stream)
    message = stream.get_final_completion().choices[0].message

    last = [event for event in events if event.type == "chunk"][-1].chunk.choices[0]
    assert {"refusal.delta", "refusal.done"} <= {event.type for event in events}
    assert (getattr(message, "parsed", None), message.content) == (None, '{"name": "')
    assert "at token 3" in message.refusal
    assert last.uncertainty["decided_at"] == 3


def test_raw_response_of_a_parsed_answer_has_the_numbers_in_its_headers(completions: Any) -> None:
    raw = completions.with_raw_response.parse(model=ENSEMBLE, messages=QUESTION, response_format=Colour)

    assert raw.headers["x-softspec-decision"] == "abstain"
    assert raw.parse().choices[0].message.refusal
