"""Policies that need a calibration: targets become its thresholds, and `confidence` is read off it."""

from typing import Any

import pytest

from softspec.artefact.calibration import Calibration, Target
from softspec.engine.trace import ChoiceTrace
from softspec.errors import ConfigError, FieldError
from softspec.maths.answer import summarise
from softspec.server.ops.settings import Flags, Settings, read_settings
from softspec.server.policy.fields import PolicyFields, read_threshold
from softspec.server.policy.policy import Policy
from softspec.server.policy.rules import PolicyRules
from softspec.server.policy.running import RunningDecision
from tests.support.calibrations import ANSWERS, DECISIONS, SEVERAL
from tests.support.fake_engine import TORN
from tests.support.random_tokens import PRIOR, random_tokens

FIVE = Target(target_error=0.05)


def asked(rules: PolicyRules, calibration: Calibration | None, **fields: Any) -> Policy:
    return rules.asked_by(PolicyFields.model_validate(fields), calibration)


def refusal(rules: PolicyRules, calibration: Calibration | None, **fields: Any) -> tuple[str | None, str]:
    with pytest.raises(ConfigError) as error:
        asked(rules, calibration, **fields)
    return getattr(error.value, "field", None), str(error.value)


@pytest.mark.parametrize("metric", [{}, {"metric": "max_epistemic"}, {"metric": "calibrated"}])
def test_target_becomes_the_threshold_and_the_metric_that_were_calibrated(metric: dict[str, str]) -> None:
    policy = asked(PolicyRules(), ANSWERS, action="abstain", threshold={"target_error": 0.05}, **metric)

    assert (policy.metric, policy.threshold) == ("max_epistemic", 0.3)


def test_target_of_a_decision_is_meant_by_either_name_of_its_metric() -> None:
    fields = {"action": "abstain", "metric": "mutual_information", "threshold": {"target_error": 0.05}}

    assert asked(PolicyRules(), DECISIONS, **fields).threshold == 0.2


def test_group_has_a_threshold_of_its_own() -> None:
    fields = {"action": "abstain", "threshold": {"target_error": 0.05, "group": "law"}}

    assert asked(PolicyRules(), ANSWERS, **fields).threshold == 0.1


@pytest.mark.parametrize(
    ("calibration", "fields", "field", "complaint"),
    [
        (None, {}, "threshold", "needs an ensemble that was calibrated"),
        (
            ANSWERS,
            {"threshold": {"target_error": 0.01}},
            "threshold",
            'expected one of {"target_error": 0.05}',
        ),
        (
            ANSWERS,
            {"metric": "epistemic"},
            "metric",
            "was calibrated on 'max_epistemic': leave the metric out",
        ),
        (ANSWERS, {"min_tokens": 3}, "min_tokens", "was calibrated with 1: give min_tokens 1"),
    ],
)
def test_target_that_cannot_be_met_is_refused_by_name(
    calibration: Calibration | None, fields: dict[str, Any], field: str, complaint: str
) -> None:
    fields = {"action": "abstain", "threshold": {"target_error": 0.05}, **fields}

    found, message = refusal(PolicyRules(), calibration, **fields)

    assert found == field
    assert complaint in message
    assert "\n" not in message


def test_servers_target_holds_for_requests_that_say_nothing() -> None:
    rules = PolicyRules(Policy().changed(action="abstain", threshold=FIVE))

    assert rules.asked_by(None, ANSWERS) == Policy("abstain", "max_epistemic", 0.3, calibration=ANSWERS)


def test_number_in_place_of_the_servers_target_is_on_its_metric() -> None:
    rules = PolicyRules(Policy().changed(action="abstain", threshold=FIVE))

    assert asked(rules, ANSWERS, threshold=0.2) == Policy("abstain", "max_epistemic", 0.2)


def test_pinned_target_is_tightened_by_number_or_by_a_stricter_target() -> None:
    rules = PolicyRules(Policy().changed(action="abstain", threshold=FIVE), pinned=True)

    assert asked(rules, ANSWERS, threshold=0.2).threshold == 0.2
    assert asked(rules, ANSWERS, threshold={"target_error": 0.05, "group": "law"}).threshold == 0.1
    assert refusal(rules, ANSWERS, threshold=0.4)[0] == "threshold"
    assert refusal(rules, ANSWERS, threshold={"target_coverage": 0.8})[0] == "threshold"


def test_same_target_passes_where_nothing_may_be_changed() -> None:
    rules = PolicyRules(Policy().changed(action="abstain", threshold=FIVE), allow_override=False)

    assert asked(rules, ANSWERS, threshold={"target_error": 0.05}).threshold == 0.3
    assert refusal(rules, ANSWERS, threshold={"target_coverage": 0.8})[0] == "threshold"


def test_server_does_not_start_with_an_ensemble_that_cannot_follow_its_policy() -> None:
    rules = PolicyRules(Policy().changed(action="abstain", threshold=FIVE))

    rules.require_followed({"my": ANSWERS, "other": DECISIONS})
    with pytest.raises(FieldError, match=r"ensemble 'plain' cannot be served: .* was calibrated"):
        rules.require_followed({"my": ANSWERS, "plain": None})


def test_either_kind_of_calibration_lets_the_server_start() -> None:
    only_decisions = Target(target_error=0.2)
    both = ANSWERS.model_copy(update={"also": DECISIONS})

    PolicyRules(Policy().changed(action="abstain", threshold=only_decisions)).require_followed({"my": both})


@pytest.mark.parametrize("calibration", [ANSWERS, SEVERAL], ids=["one metric", "several"])
def test_confidence_of_every_prefix_is_that_of_its_summary(calibration: Calibration) -> None:
    for seed in range(20):
        tokens = random_tokens(seed, 8)
        trace = ChoiceTrace(PRIOR, "prefix_posterior", 1, tokens, calibration=calibration)
        values = [calibration.confidence(vars(summarise(tokens[:end], PRIOR))) for end in range(1, 9)]
        policy = Policy(
            "abstain", "confidence", sorted(values)[seed % 8] * 1.0001 % 1, calibration=calibration
        )
        running = RunningDecision(policy, trace)

        running.catch_up()

        threshold = policy.threshold
        assert isinstance(threshold, float)
        crossing = [end for end, value in enumerate(values, 1) if value < threshold]
        assert running.decision.decided_at == (crossing[0] if crossing else None)


def test_ensemble_that_was_replaced_meanwhile_is_not_judged_by_the_old_calibration() -> None:
    policy = Policy("abstain", "max_epistemic", 0.3, calibration=ANSWERS)

    with pytest.raises(ConfigError, match="another calibration while the request was on its way"):
        RunningDecision(policy, ChoiceTrace(PRIOR, "prefix_posterior", 1, list(TORN), calibration=SEVERAL))


def test_target_is_written_in_a_flag_as_in_a_file() -> None:
    assert read_threshold("target_error=0.05") == FIVE
    assert read_threshold("0.5") == 0.5


@pytest.mark.parametrize("wrong", ["target_error=2", "target=0.1", "high", "target_error=x"])
def test_flag_that_is_neither_number_nor_target_is_no_threshold(wrong: str) -> None:
    with pytest.raises(ValueError, match=r"convert|validation error"):
        read_threshold(wrong)


def test_target_travels_to_the_plugin(tmp_path: Any) -> None:
    variables = {"SOFTSPEC_POLICY_ACTION": "abstain", "SOFTSPEC_POLICY_THRESHOLD": "target_error=0.05"}
    settings = read_settings([tmp_path], variables, Flags())

    carried = Settings.from_environment(settings.to_environment())

    assert carried.rules.default == Policy("abstain", "calibrated", FIVE)
