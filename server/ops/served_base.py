"""What the base that is served is: its fingerprint, by which ensembles are compared with it.

In: the base's directory or hub id. Out: the fingerprint, or None where nobody is to ask; an error where an ensemble is
of another base.
"""

import logging
from collections.abc import Mapping
from pathlib import Path

from softspec.artefact.fit import require_fit
from softspec.artefact.manifest import Manifest, member_dir
from softspec.engine.requirements import require_base
from softspec.errors import ConfigError

_log = logging.getLogger(__name__)


def served_fingerprint(base: str, revision: str | None, unchecked: bool) -> str | None:
    """The fingerprint of the base that is served; None if it is to stay unchecked.

    Raises:
        ConfigError: the base's files cannot be found, as where it is one file of another format.
    """
    if unchecked:
        _log.warning("the base '%s' is not compared with that of the ensembles (--base-unchecked)", base)
        return None
    # Imported here: takes a second or two, and what is wrong with the arguments is said before.
    from softspec.artefact.fingerprint import fingerprint

    try:
        return fingerprint(base, revision)
    except ConfigError as error:
        raise ConfigError(
            f"the base that is served cannot be compared with that of the ensembles ({error}): serve its directory or "
            "hub id, or take the risk with --base-unchecked"
        ) from error


def require_base_of(manifests: Mapping[Path, Manifest], served: Path, unchecked: bool) -> None:
    """Raise unless the ensembles were trained on this base, and their adapters fit it."""
    require_base(served_fingerprint(str(served), None, unchecked), manifests.values())
    for path, manifest in manifests.items():
        for member in range(manifest.num_members):
            require_fit(member_dir(path, member), served)
