"""What the base that is served is: its fingerprint, by which ensembles are compared with it.

In: the base's directory or hub id. Out: the fingerprint, or None where nobody is to ask.
"""

import logging

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
