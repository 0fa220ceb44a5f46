"""What the server says of itself once it is ready, in one line.

In: what is served, and the policy. Out: the line.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol

from softspec.artefact.manifest import Manifest
from softspec.server.policy.policy import Policy


class Served(Protocol):
    """An ensemble, as far as the line names it."""

    @property
    def manifest(self) -> Manifest: ...


def welcome(ensembles: Mapping[str, Served], bases: Sequence[str], policy: Policy) -> str:
    """The names under which models are served, the policy that holds, and where to ask whether it is ready."""
    names = ", ".join(
        f"'{name}' ({ensemble.manifest.num_members} members: '{name}/member-0', ...)"
        for name, ensemble in ensembles.items()
    )
    return (
        f"softspec is ready: serves {names or 'no ensemble'} on the base '{', '.join(bases)}'; policy {_told(policy)}; "
        "GET /ready says so too"
    )


def _told(policy: Policy) -> str:
    if policy.action == "answer":
        return "'answer': no answer is withheld unless a request asks for it"
    return f"'{policy.action}' above {policy.threshold:g} of {policy.metric}"
