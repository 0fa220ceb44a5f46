"""The server's settings, and the environment that carries them."""

from pathlib import Path

import pytest

from softspec.errors import ConfigError
from softspec.server.ops.settings import Settings
from softspec.server.policy.policy import Policy
from softspec.server.policy.rules import PolicyRules


@pytest.mark.parametrize(
    ("policy", "pinned"), [(Policy("abstain", "epistemic", 0.1, min_tokens=8), True), (Policy(), False)]
)
def test_settings_survive_the_environment(policy: Policy, pinned: bool) -> None:
    settings = Settings(
        (Path("/models/a"), Path("/models/b")),
        PolicyRules(policy, pinned=pinned),
        base_unchecked=True,
        allow_untested=True,
    )

    assert Settings.from_environment(settings.to_environment()) == settings


def test_default_policy_answers_everything() -> None:
    settings = Settings.from_environment({"SOFTSPEC_ENSEMBLE": "/models/a"})

    assert settings.rules.default == Policy("answer")


@pytest.mark.parametrize(
    ("environment", "complaint"),
    [
        ({}, "SOFTSPEC_ENSEMBLE is not set"),
        ({"SOFTSPEC_ENSEMBLE": "a", "SOFTSPEC_BASE_UNCHECKED": "yes"}, "'yes': expected 0 or 1"),
        ({"SOFTSPEC_ENSEMBLE": "a", "SOFTSPEC_POLICY_THRESHOLD": "high"}, "expected a number"),
        ({"SOFTSPEC_ENSEMBLE": "a", "SOFTSPEC_POLICY_ACTION": "abstain"}, "needs a threshold"),
        (
            {"SOFTSPEC_ENSEMBLE": "a", "SOFTSPEC_POLICY_ACTION": "route", "SOFTSPEC_POLICY_THRESHOLD": "0.3"},
            "no upstream",
        ),
        ({"SOFTSPEC_ENSEMBLE": "a", "SOFTSPEC_POLICY_THRESHOLD": "0.3"}, "withholds nothing"),
        ({"SOFTSPEC_ENSEMBLE": "a", "SOFTSPEC_POLICY_MIN_TOKENS": "2.5"}, "MIN_TOKENS is '2.5': expected"),
        ({"SOFTSPEC_ENSEMBLE": "a", "SOFTSPEC_POLICY_PINNED": "1"}, "pinned but withholds nothing"),
        ({"SOFTSPEC_ENSEMBLE": "a", "SOFTSPEC_POLICY_PINNED": "yes"}, "PINNED is 'yes': expected 0 or 1"),
    ],
)
def test_wrong_settings_stop_the_server_at_start(environment: dict[str, str], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        Settings.from_environment(environment)
