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


@dataclass(frozen=True)
class Settings:
    """What a server is told: the directories of its ensembles, and the policy for requests that name none."""

    ensembles: tuple[Path, ...]
    policy: Policy = field(default_factory=Policy)

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
        return Settings(tuple(Path(path) for path in paths), policy)

    def to_environment(self) -> dict[str, str]:
        """The variables that `from_environment` reads back as these settings."""
        variables = {
            ENSEMBLES: os.pathsep.join(str(path) for path in self.ensembles),
            POLICY_ACTION: self.policy.action,
            POLICY_METRIC: self.policy.metric,
        }
        if self.policy.threshold is not None:
            variables[POLICY_THRESHOLD] = repr(self.policy.threshold)
        return variables


def _number(name: str, text: str | None) -> float | None:
    if text is None:
        return None
    try:
        return float(text)
    except ValueError as error:
        raise ConfigError(f"{name} is '{text}': expected a number of at least 0") from error
