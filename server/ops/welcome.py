"""What the server says of itself once it is ready, in one line.

In: what is served, and the policy. Out: the line.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol

from softspec.artefact.manifest import Manifest
from softspec.server.policy.rules import PolicyRules


class Served(Protocol):
    """An ensemble, as far as the line names it."""

    @property
    def manifest(self) -> Manifest: ...


def welcome(ensembles: Mapping[str, Served], bases: Sequence[str], rules: PolicyRules) -> str:
    """The names under which models are served, the policy that holds, and where to ask whether it is ready."""
    names = ", ".join(
        f"'{name}' ({ensemble.manifest.num_members} members: '{name}/member-0', ...)"
        for name, ensemble in ensembles.items()
    )
    return (
        f"softspec is ready: serves {names or 'no ensemble'} on the base '{', '.join(bases)}'; "
        f"policy {_told(rules)}; GET /ready says so too"
    )


def _told(rules: PolicyRules) -> str:
    policy = rules.default
    if policy.action == "answer":
        return "'answer': no answer is withheld unless a request asks for it"
    begin = f" from token {policy.min_tokens} on" if policy.min_tokens > 1 else ""
    rule = f"'{policy.action}' once {policy.metric} is above {policy.threshold:g}{begin}"
    return f"{rule}, which requests {'may only tighten' if rules.pinned else 'may change'}"
