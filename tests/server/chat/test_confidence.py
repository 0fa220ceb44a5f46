"""A calibrated ensemble tells its confidence wherever it tells its numbers, and policies may go by it."""

import json
from typing import Any

import openai
import pytest
from prometheus_client import CollectorRegistry, generate_latest

from softspec.artefact.calibration import Target
from softspec.engine.trace import ChoiceTrace
from softspec.maths.answer import summarise
from softspec.server.ops.place import Place
from softspec.server.ops.welcome import welcome
from softspec.server.policy.policy import Policy
from softspec.server.policy.rules import PolicyRules
from softspec.server.scores.scorer import scored
from tests.support.calibrations import ANSWERS, DECISIONS, SEVERAL
from tests.support.fake_decisions import FakeScorer, decisions_app
from tests.support.fake_engine import AGREED, ENSEMBLE, TORN, UNIFORM, FakeEngine, client_of, make_app, spell

QUESTION: Any = [{"role": "user", "content": "Is it allowed?"}]
CHOICE: Any = [{"type": "choice", "instructions": "Which?", "choices": [{"value": "red"}, {"value": "blue"}]}]
TABLE: dict[str, tuple[float, ...]] = {"red": (0.7, 0.2), "blue": (0.1, 0.6)}


def ask(engine: FakeEngine, policy: dict[str, Any] | None = None, **fields: Any) -> Any:
    extra = {} if policy is None else {"uncertainty": {"policy": policy}}
    client = client_of(make_app(engine))
    return client.chat.completions.create(model=ENSEMBLE, messages=QUESTION, extra_body=extra, **fields)


def decide(policy: dict[str, Any] | None = None, calibration: Any = DECISIONS, **fields: Any) -> Any:
    extra = {**fields, **({} if policy is None else {"uncertainty": {"policy": policy}})}
    client = client_of(decisions_app(FakeScorer(TABLE, calibration=calibration)))
    return client.decisions.create(model=ENSEMBLE, input="a car", questions=CHOICE, extra_body=extra).answers[
        0
    ]


@pytest.mark.parametrize("calibration", [ANSWERS, SEVERAL], ids=["one metric", "several"])
def test_answer_tells_the_confidence_of_its_numbers(calibration: Any) -> None:
    uncertainty = ask(FakeEngine([AGREED], calibration=calibration)).choices[0].uncertainty

    assert uncertainty["confidence"] == calibration.confidence(vars(summarise(AGREED, UNIFORM)))


def test_stream_tells_it_with_the_last_chunk() -> None:
    chunks = list(ask(FakeEngine([AGREED], calibration=ANSWERS), stream=True))

    assert chunks[-1].choices[0].uncertainty["confidence"] == pytest.approx(0.82)


def test_calibration_of_decisions_is_none_of_answers() -> None:
    assert ask(FakeEngine([AGREED], calibration=DECISIONS)).choices[0].uncertainty["confidence"] is None
    assert decide(calibration=ANSWERS).uncertainty["confidence"] is None


def test_target_withholds_what_crosses_the_calibrated_threshold() -> None:
    policy = {"action": "abstain", "threshold": {"target_error": 0.05}}

    choice = ask(FakeEngine([TORN], calibration=ANSWERS), policy).choices[0]

    assert choice.message.content is None
    assert choice.uncertainty["reason"] == "max_epistemic 0.60 > 0.30 at token 3"


def test_confidence_below_the_threshold_withholds_streamed_or_not() -> None:
    policy = {"action": "abstain", "metric": "confidence", "threshold": 0.5}

    whole = ask(FakeEngine([TORN], calibration=ANSWERS), policy).choices[0].uncertainty
    last = list(ask(FakeEngine([TORN], calibration=ANSWERS), policy, stream=True))[-1].choices[0].uncertainty

    assert whole["reason"] == last["reason"] == "confidence 0.42 < 0.50 at token 3"
    assert whole["confidence"] == last["confidence"] == pytest.approx(0.42)


@pytest.mark.parametrize(
    ("policy", "field"),
    [
        ({"metric": "confidence", "threshold": 0.5}, "metric"),
        ({"threshold": {"target_error": 0.05}}, "threshold"),
    ],
)
def test_ensemble_without_calibration_refuses_what_needs_one(policy: dict[str, Any], field: str) -> None:
    with pytest.raises(openai.BadRequestError) as error:
        ask(FakeEngine([AGREED]), {"action": "abstain", **policy})

    assert error.value.param == f"uncertainty.policy.{field}"
    assert "needs an ensemble that was calibrated" in str(error.value)


def test_target_that_was_not_certified_is_refused_with_those_that_were() -> None:
    with pytest.raises(openai.BadRequestError, match="no threshold was certified for") as error:
        ask(
            FakeEngine([AGREED], calibration=ANSWERS),
            {"action": "abstain", "threshold": {"target_error": 0.01}},
        )

    assert '{"target_coverage": 0.8}' in error.value.message


def test_decision_tells_its_confidence_and_may_be_withheld_for_it() -> None:
    answered = decide()
    below = {"action": "abstain", "metric": "confidence", "threshold": 0.99}
    withheld = decide(below)

    confidence = DECISIONS.confidence({"epistemic": answered.uncertainty["epistemic"]})
    assert answered.uncertainty["confidence"] == confidence
    assert withheld.type == "refusal"
    assert withheld.uncertainty["reason"].startswith(f"confidence {confidence:.2f} < 0.99")


def test_target_of_decisions_is_followed() -> None:
    assert decide({"action": "abstain", "threshold": {"target_error": 0.2}}).type == "choice"
    assert decide({"action": "abstain", "threshold": {"target_error": 0.05}}).type == "refusal"


def test_normalised_options_have_no_confidence_as_none_were_calibrated() -> None:
    assert decide(length_normalise=True).uncertainty["confidence"] is None
    with pytest.raises(openai.BadRequestError, match="needs an ensemble that was calibrated"):
        decide({"action": "abstain", "threshold": {"target_error": 0.05}}, length_normalise=True)


def test_confidences_are_counted_by_kind() -> None:
    registry = CollectorRegistry()
    client = client_of(make_app(FakeEngine([AGREED, TORN], calibration=ANSWERS), registry=registry))

    client.chat.completions.create(model=ENSEMBLE, messages=QUESTION, n=2)

    page = generate_latest(registry).decode()
    assert 'softspec_confidence_ratio_count{judged="answers",model="jurists"} 2.0' in page
    assert "softspec_confidence_drift_ratio{" not in page


def test_numbers_are_json() -> None:
    body = ask(FakeEngine([AGREED], calibration=SEVERAL)).model_dump_json()

    assert 0 < json.loads(body)["choices"][0]["uncertainty"]["confidence"] < 1


def test_scored_answer_tells_its_confidence() -> None:
    trace = ChoiceTrace(UNIFORM, "prefix_posterior", 1, list(AGREED), calibration=ANSWERS)

    assert scored(trace, False, spell)["confidence"] == pytest.approx(0.82)


def test_server_says_of_a_target_what_it_stands_for() -> None:
    rules = PolicyRules(Policy().changed(action="abstain", threshold=Target(target_error=0.05)))

    told = welcome({}, ["base"], rules, Place(None, 8000))

    assert 'once the threshold that was calibrated for {"target_error": 0.05} is crossed' in told
