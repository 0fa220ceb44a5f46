"""The keys that hold now: those of the file, read again when it has changed.

In: a file, and what callers present. Out: whose key that is. A file that can no longer be read, or has become wrong,
leaves the keys as they were: an editor's slip must not lock everybody out.
"""

import hmac
import logging
import time
from collections.abc import Callable
from pathlib import Path

from softspec.errors import ConfigError
from softspec.server.access.keys import Key, key_hash, read_key_file

LOOK_EVERY_S = 1.0
"""How long a change of the file may go unnoticed."""

_log = logging.getLogger(__name__)
_Signature = tuple[int, int, int] | None


class KeyRing:
    """The keys of one file; `now` is a clock in seconds."""

    def __init__(self, path: Path, now: Callable[[], float] = time.monotonic) -> None:
        """Read the file.

        Raises:
            ConfigError: see `read_key_file`.
        """
        self._path = path
        self._now = now
        self._looked_at = now()
        self._signature = _signature(path)
        self._keys = read_key_file(path)

    def find(self, presented: str) -> tuple[str, Key] | None:
        """The name and the key that this is; None if it is none.

        Takes the same time whichever key it is, so that nobody can guess one by the clock.
        """
        self._look()
        wanted = key_hash(presented)
        found = None
        for name, key in self._keys.items():
            if hmac.compare_digest(key.hash, wanted):
                found = name, key
        return found

    def _look(self) -> None:
        """Read the file again if it is another than it was."""
        if self._now() < self._looked_at + LOOK_EVERY_S:
            return
        self._looked_at = self._now()
        signature = _signature(self._path)
        if signature == self._signature:
            return
        self._signature = signature
        try:
            self._keys = read_key_file(self._path)
        except ConfigError as error:
            _log.error("the API keys stay as they were: %s", error)
        else:
            _log.info("API keys read again: %s", ", ".join(self._keys) or "none is left")


def _signature(path: Path) -> _Signature:
    """What differs once a file was written or replaced; None if it is not there."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
