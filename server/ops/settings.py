"""The server's settings, carried from `softspec serve` to vLLM's processes by environment variables.

In and out: SOFTSPEC_* variables. The only place in `server/` that knows their names.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from softspec.errors import ConfigError
from softspec.server.policy.policy import DEFAULT_METRIC, Action, Policy

ENSEMBLES = "SOFTSPEC_ENSEMBLE"
POLICY_ACTION = "SOFTSPEC_POLICY_ACTION"
POLICY_METRIC = "SOFTSPEC_POLICY_METRIC"
POLICY_THRESHOLD = "SOFTSPEC_POLICY_THRESHOLD"
BASE_UNCHECKED = "SOFTSPEC_BASE_UNCHECKED"
ALLOW_UNTESTED = "SOFTSPEC_ALLOW_UNTESTED"
MAX_TOP_LOGPROBS = 20
"""OpenAI's limit on likeliest tokens; the engine's own is larger, because telemetry travels beside them."""


@dataclass(frozen=True)
class Settings:
    """What a server is told: the directories of its ensembles, the policy for requests that name none, and risks.

    `base_unchecked` serves ensembles on whatever base there is; `allow_untested` takes any option of vLLM's engine.
    """

    ensembles: tuple[Path, ...]
    policy: Policy = field(default_factory=Policy)
    base_unchecked: bool = False
    allow_untested: bool = False

    @staticmethod
    def from_environment(environment: Mapping[str, str]) -> "Settings":
        """Read the variables; several ensembles are separated as in PATH.

        Raises:
            ConfigError: no ensemble is named, or the policy cannot be followed.
        """
        paths = [part for part in environment.get(ENSEMBLES, "").split(os.pathsep) if part]
        if not paths:
            raise ConfigError(f"{ENSEMBLES} is not set: expected one or more ensemble directories")
        policy = Policy(
            action=cast(Action, environment.get(POLICY_ACTION, "answer")),
            metric=environment.get(POLICY_METRIC, DEFAULT_METRIC),
            threshold=_number(POLICY_THRESHOLD, environment.get(POLICY_THRESHOLD)),
        )
        return Settings(
            tuple(Path(path) for path in paths),
            policy,
            base_unchecked=_is_on(BASE_UNCHECKED, environment),
            allow_untested=_is_on(ALLOW_UNTESTED, environment),
        )

    def to_environment(self) -> dict[str, str]:
        """The variables that `from_environment` reads back as these settings."""
        variables = {
            ENSEMBLES: os.pathsep.join(str(path) for path in self.ensembles),
            POLICY_ACTION: self.policy.action,
            POLICY_METRIC: self.policy.metric,
            BASE_UNCHECKED: str(int(self.base_unchecked)),
            ALLOW_UNTESTED: str(int(self.allow_untested)),
        }
        if self.policy.threshold is not None:
            variables[POLICY_THRESHOLD] = repr(self.policy.threshold)
        return variables


def _is_on(name: str, environment: Mapping[str, str]) -> bool:
    if (text := environment.get(name, "0")) not in ("0", "1"):
        raise ConfigError(f"{name} is '{text}': expected 0 or 1")
    return text == "1"


def _number(name: str, text: str | None) -> float | None:
    if text is None:
        return None
    try:
        return float(text)
    except ValueError as error:
        raise ConfigError(f"{name} is '{text}': expected a number of at least 0") from error
