"""What the server says of itself once it is ready: what is served, where, with which policy, and how to ask it.

In: what is served, and the policy with its limits. Out: four lines.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol

from softspec.artefact.calibration import CONFIDENCE, Target
from softspec.artefact.manifest import Manifest
from softspec.server.ops.place import Place
from softspec.server.policy.rules import PolicyRules


class Served(Protocol):
    """An ensemble, as far as the first line names it."""

    @property
    def manifest(self) -> Manifest: ...


def welcome(ensembles: Mapping[str, Served], bases: Sequence[str], rules: PolicyRules, place: Place) -> str:
    """The names under which models are served, where, the policy that holds, and a command to try."""
    names = ", ".join(
        f"'{name}' ({ensemble.manifest.num_members} members: '{name}/member-0', ...)"
        for name, ensemble in ensembles.items()
    )
    lines = (
        f"softspec is ready: serves {names or 'no ensemble'} on the base '{', '.join(bases)}'",
        f"at {place}; GET /ready says so too",
        f"policy {_told(rules)}",
        place.question(next(iter([*ensembles, *bases]))),
    )
    return "\n  ".join(lines)


def _told(rules: PolicyRules) -> str:
    policy = rules.default
    if policy.action == "answer" and not rules.allow_override:
        return "'answer': no answer is withheld"
    if policy.action == "answer":
        return f"'answer': no answer is withheld unless a request asks for it{_limits(rules)}"
    to = f" to '{policy.upstream}'" if policy.upstream else ""
    side = "below" if policy.metric == CONFIDENCE else "above"
    begin = f" from token {policy.min_tokens} on" if policy.min_tokens > 1 else ""
    held = f", {policy.held} tokens of a stream held back" if policy.held else ""
    failure = f", '{policy.on_failure}' where that fails" if policy.upstream else ""
    if isinstance(policy.threshold, Target):
        crossing = f"the threshold that was calibrated for {policy.threshold} is crossed"
    else:
        crossing = f"{policy.metric} is {side} {policy.threshold:g}"
    rule = f"'{policy.action}'{to} once {crossing}{begin}{held}{failure}"
    return f"{rule}, which requests {_may(rules)}"


def _may(rules: PolicyRules) -> str:
    """What requests may do to the policy."""
    if not rules.allow_override:
        return "may not change"
    return f"may {'only tighten' if rules.pinned else 'change'}{_limits(rules)}"


def _limits(rules: PolicyRules) -> str:
    """What requests may ask for, where not everything."""
    limits = {"actions": rules.allowed_actions, "upstreams": rules.allowed_upstreams}
    told = [f"{what} {', '.join(names) or 'none'}" for what, names in limits.items() if names is not None]
    return f" (allowed {'; '.join(told)})" if told else ""
