"""The server's settings, and the environment that carries them."""

from pathlib import Path

import pytest

from softspec.errors import ConfigError
from softspec.server.ops.settings import Settings
from softspec.server.policy.policy import Policy


def test_settings_survive_the_environment() -> None:
    settings = Settings(
        (Path("/models/a"), Path("/models/b")),
        Policy("abstain", "epistemic", 0.1),
        base_unchecked=True,
        allow_untested=True,
    )

    assert Settings.from_environment(settings.to_environment()) == settings


def test_default_policy_answers_everything() -> None:
    settings = Settings.from_environment({"SOFTSPEC_ENSEMBLE": "/models/a"})

    assert settings.policy == Policy("answer")


@pytest.mark.parametrize(
    ("environment", "complaint"),
    [
        ({}, "SOFTSPEC_ENSEMBLE is not set"),
        ({"SOFTSPEC_ENSEMBLE": "a", "SOFTSPEC_BASE_UNCHECKED": "yes"}, "'yes': expected 0 or 1"),
        ({"SOFTSPEC_ENSEMBLE": "a", "SOFTSPEC_POLICY_THRESHOLD": "high"}, "expected a number"),
        ({"SOFTSPEC_ENSEMBLE": "a", "SOFTSPEC_POLICY_ACTION": "abstain"}, "needs a threshold"),
        ({"SOFTSPEC_ENSEMBLE": "a", "SOFTSPEC_POLICY_ACTION": "route"}, "no upstream"),
    ],
)
def test_wrong_settings_stop_the_server_at_start(environment: dict[str, str], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        Settings.from_environment(environment)
