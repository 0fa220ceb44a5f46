"""The server's policy, and what of it a request may change.

In: the operator's policy and limits, the names of the upstreams, and the fields of a request's policy. Out: the policy
that holds for the request. Knows of an upstream only its name, and no HTTP.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace

from softspec.artefact.calibration import Calibration
from softspec.artefact.validation import as_key
from softspec.errors import ConfigError, FieldError
from softspec.server.policy.fields import PolicyFields
from softspec.server.policy.policy import Action, Policy


@dataclass(frozen=True)
class PolicyRules:
    """The policy where a request says nothing, and the limits of what it may say.

    `upstreams` are those that are configured. Of them, and of the actions, a request may choose the allowed ones, None
    being all. Where the policy is pinned, it may only tighten it; without `allow_override` it may change nothing.

    Raises:
        ConfigError: the server's own policy is outside of its limits, or cannot be followed.
    """

    default: Policy = field(default_factory=Policy)
    upstreams: tuple[str, ...] = ()
    allow_override: bool = True
    pinned: bool = False
    allowed_actions: tuple[Action, ...] | None = None
    allowed_upstreams: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.pinned and self.default.action == "answer":
            raise ConfigError(
                "the policy is pinned but withholds nothing: give action 'abstain' or 'route', and a threshold"
            )
        unknown = [name for name in self.allowed_upstreams or () if name not in self.upstreams]
        if unknown:
            raise ConfigError(f"allowed_upstreams names '{as_key(unknown[0])}': {_choice(self.upstreams)}")
        object.__setattr__(self, "default", self._followed(self.default))

    def require_followed(self, calibrations: Mapping[str, Calibration | None]) -> None:
        """Refuse ensembles, by name, that cannot follow the server's policy in anything that they are asked.

        Raises:
            ConfigError: there is one; the message names it.
        """
        for name, calibration in calibrations.items():
            kinds = [calibration, calibration.also] if calibration is not None else [None]
            for place, kind in enumerate(kinds, start=1):
                try:
                    self.default.resolved(kind)
                    break
                except FieldError as error:
                    if place == len(kinds):
                        raise FieldError(
                            error.field, f"ensemble '{name}' cannot be served: {error}"
                        ) from error

    def asked_by(self, fields: PolicyFields | None, calibration: Calibration | None = None) -> Policy:
        """The policy of a request that gave these fields, of an ensemble with this calibration.

        A route names its upstream, and a threshold is a number.

        Raises:
            FieldError: this server does not allow it, or the ensemble cannot follow it; names the field of the policy.
            ConfigError: it cannot be followed.
        """
        default = self.default.resolved(calibration)
        if fields is None:
            return default
        policy = self._followed(fields.change(default)).resolved(calibration)
        if not self.allow_override and (changed := _difference(default, policy)):
            raise FieldError(
                changed,
                f"{changed} differs from the server's policy, which holds for every request: leave the policy out",
            )
        if self.pinned and (loosened := default.loosened_by(policy)):
            is_given = getattr(fields, loosened) is not None
            remedy = "leave it out, or tighten it" if is_given else f"give at least {default.held}"
            raise FieldError(
                loosened, f"{loosened} would loosen the server's policy, which is pinned: {remedy}"
            )
        return policy

    def _followed(self, policy: Policy) -> Policy:
        """The policy as this server follows it: within its limits, and with the upstream by name."""
        allowed = self.allowed_actions
        if allowed is not None and policy.action not in allowed:
            raise FieldError("action", f"policy action '{policy.action}' is not allowed: {_choice(allowed)}")
        sends_on_failure = policy.action == "route" and policy.on_failure == "answer"
        if allowed is not None and sends_on_failure and "answer" not in allowed:
            raise FieldError(
                "on_failure", "policy on_failure 'answer' is not allowed: expected abstain or error"
            )
        return replace(policy, upstream=self._upstream_of(policy)) if policy.action == "route" else policy

    def _upstream_of(self, policy: Policy) -> str:
        if not self.upstreams:
            raise ConfigError(
                "policy action 'route' is not available: no upstream is configured; start the server with --upstream "
                "NAME=URL, or use abstain"
            )
        allowed = self.upstreams if self.allowed_upstreams is None else self.allowed_upstreams
        if policy.upstream is None and len(allowed) == 1:
            return allowed[0]
        if policy.upstream is None:
            raise FieldError("upstream", f"policy upstream is missing: {_choice(allowed)}")
        if policy.upstream not in allowed:
            raise FieldError(
                "upstream", f"policy upstream is '{as_key(policy.upstream)}': {_choice(allowed)}"
            )
        return policy.upstream


def _choice(names: tuple[str, ...]) -> str:
    return f"expected one of {', '.join(names)}" if names else "there is none"


def _difference(policy: Policy, other: Policy) -> str | None:
    """The first field in which two policies differ, once what is left to the action is filled in."""
    one, two = (replace(each, hold_tokens=each.held, calibration=None) for each in (policy, other))
    names = (each.name for each in fields(Policy))
    return next((name for name in names if getattr(one, name) != getattr(two, name)), None)
