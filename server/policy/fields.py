"""A policy as it is written, in a request, in a file or as flags: any of its fields, of the right kind.

In: JSON's or YAML's values. Out: the fields that were given. Knows pydantic; what a policy may say is `Policy`.
"""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from softspec.artefact.calibration import Target
from softspec.server.policy.policy import Action, OnFailure, Policy

Name = Annotated[str, Field(min_length=1)]


def read_threshold(text: str) -> float | Target:
    """A threshold as it is written in a flag or a variable: a number, or `target_error=0.05`.

    Raises:
        ValueError: it is neither.
    """
    name, _, share = text.partition("=")
    return Target.model_validate({name: float(share)}) if share else float(text)


class PolicyFields(BaseModel):
    """The fields of `Policy`; those that are left out, or null, stay as they were."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    action: Action | None = None
    metric: str | None = None
    threshold: float | Target | None = None
    min_tokens: int | None = None
    hold_tokens: int | None = None
    upstream: Name | None = None
    on_failure: OnFailure | None = None

    def change(self, policy: Policy) -> Policy:
        """The policy with these fields.

        Raises:
            ConfigError: see `Policy.changed`.
        """
        return policy.changed(**dict(self))
