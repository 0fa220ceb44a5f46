"""What the base makes of preferences, kept in a run's folder: a resumed run need not ask it again.

In: preferences with what the base made of them. Out: the same margins, for the same preferences. Computes nothing.
"""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

from softspec.train.data.survey import survey
from softspec.train.data.units import Preference, Unit, WithReference
from softspec.train.members.members import Members
from softspec.train.objective.objective import Objective
from softspec.train.processes import Processes

Margins = Mapping[str, Sequence[float]]
"""Nats, by the digest of the preferences."""


def with_reference(
    objective: Objective[Unit],
    members: Members,
    units: Sequence[Unit],
    processes: Processes,
    known: Margins | None = None,
) -> Sequence[Unit]:
    """The units with what the base says of them, from `known` if it is there."""
    if known and units:
        margins = known.get(digest_of(units), ())
        if len(margins) == len(units):
            return WithReference(cast("Sequence[Preference]", units), margins)
    return objective.with_reference(members, units, processes)


def digest_of(units: Sequence[Unit]) -> str:
    """What tells units from others; empty without any."""
    return survey(units, routes_bundles=False, data="").digest if units else ""


def read_margins(path: Path) -> Margins:
    """The margins that a run kept; none if it kept none, or they were lost."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return {str(digest): [float(margin) for margin in margins] for digest, margins in content.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def keep_margins(path: Path, *parts: Sequence[Unit]) -> None:
    """Write the margins of those parts of the data that have some."""
    content = {digest_of(part): list(part.margins) for part in parts if isinstance(part, WithReference)}
    if content:
        temporary = path.with_suffix(".new")
        temporary.write_text(json.dumps(content), encoding="utf-8")
        os.replace(temporary, path)
