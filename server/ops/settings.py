"""The server's settings, carried from `softspec serve` to vLLM's processes by environment variables.

In and out: SOFTSPEC_* variables. The only place in `server/` that knows their names.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from softspec.errors import ConfigError
from softspec.server.policy.policy import Policy
from softspec.server.policy.rules import PolicyRules

Number = TypeVar("Number", int, float)

ENSEMBLES = "SOFTSPEC_ENSEMBLE"
POLICY_ACTION = "SOFTSPEC_POLICY_ACTION"
POLICY_METRIC = "SOFTSPEC_POLICY_METRIC"
POLICY_THRESHOLD = "SOFTSPEC_POLICY_THRESHOLD"
POLICY_MIN_TOKENS = "SOFTSPEC_POLICY_MIN_TOKENS"
POLICY_PINNED = "SOFTSPEC_POLICY_PINNED"
BASE_UNCHECKED = "SOFTSPEC_BASE_UNCHECKED"
ALLOW_UNTESTED = "SOFTSPEC_ALLOW_UNTESTED"


@dataclass(frozen=True)
class Settings:
    """What a server is told: the directories of its ensembles, its policy with what a request may change, and risks.

    `base_unchecked` serves ensembles on whatever base there
    is; `allow_untested` takes any option of vLLM's engine.
    """

    ensembles: tuple[Path, ...]
    rules: PolicyRules = field(default_factory=PolicyRules)
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
        policy = Policy().changed(
            action=environment.get(POLICY_ACTION),
            metric=environment.get(POLICY_METRIC),
            threshold=_number(POLICY_THRESHOLD, environment, float),
            min_tokens=_number(POLICY_MIN_TOKENS, environment, int),
        )
        return Settings(
            tuple(Path(path) for path in paths),
            PolicyRules(policy, pinned=_is_on(POLICY_PINNED, environment)),
            base_unchecked=_is_on(BASE_UNCHECKED, environment),
            allow_untested=_is_on(ALLOW_UNTESTED, environment),
        )

    def to_environment(self) -> dict[str, str]:
        """The variables that `from_environment` reads back as these settings."""
        variables = {
            ENSEMBLES: os.pathsep.join(str(path) for path in self.ensembles),
            BASE_UNCHECKED: str(int(self.base_unchecked)),
            ALLOW_UNTESTED: str(int(self.allow_untested)),
        }
        if self.rules.default.action != "answer":
            variables |= {
                POLICY_ACTION: self.rules.default.action,
                POLICY_METRIC: self.rules.default.metric,
                POLICY_THRESHOLD: repr(self.rules.default.threshold),
                POLICY_MIN_TOKENS: str(self.rules.default.min_tokens),
                POLICY_PINNED: str(int(self.rules.pinned)),
            }
        return variables


def _is_on(name: str, environment: Mapping[str, str]) -> bool:
    if (text := environment.get(name, "0")) not in ("0", "1"):
        raise ConfigError(f"{name} is '{text}': expected 0 or 1")
    return text == "1"


def _number(name: str, environment: Mapping[str, str], kind: Callable[[str], Number]) -> Number | None:
    text = environment.get(name)
    if text is None:
        return None
    try:
        return kind(text)
    except ValueError as error:
        raise ConfigError(f"{name} is '{text}': expected a number") from error
