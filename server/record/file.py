"""A file of rows that only its owner may read: every line whole, and set aside once it is large.

In: lines. Out: the file, and those it was before: FILE.1 is the last, FILE.2 the one before it. Knows nothing of rows.
"""

import os
import stat
from logging.handlers import RotatingFileHandler
from pathlib import Path

from softspec.errors import ConfigError

_OTHERS = stat.S_IRWXG | stat.S_IRWXO


class RowFile:
    """Appends lines; begins anew before the file would have more than `max_bytes`, and keeps `keep` older ones."""

    def __init__(self, path: Path, max_bytes: int, keep: int) -> None:
        """Make the file if it is not there.

        Raises:
            ConfigError: it cannot be written, others may read it, or it does not end with a whole line.
        """
        self.path = path
        self._max_bytes = max_bytes
        self._keep = keep
        try:
            os.close(self._open())
            self._check()
        except OSError as error:
            raise ConfigError(
                f"the record '{path}' cannot be written: {error.strerror}; choose another file"
            ) from error

    def append(self, line: bytes) -> None:
        """Write a line and its end, or nothing of it.

        Raises:
            OSError: there is no room, or the file cannot be written any more.
        """
        row = line + b"\n"
        file = self._open()
        try:
            size = os.fstat(file).st_size
            if size and size + len(row) > self._max_bytes:
                self._set_aside()
                fresh = self._open()
                os.close(file)
                file, size = fresh, 0
            if (written := os.write(file, row)) < len(row):
                os.ftruncate(file, size)
                raise OSError(0, f"only {written} of {len(row)} bytes could be written")
        finally:
            os.close(file)

    def _open(self) -> int:
        return os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def _set_aside(self) -> None:
        if self._keep == 0:
            os.truncate(self.path, 0)
            return
        handler = RotatingFileHandler(self.path, backupCount=self._keep, delay=True)
        try:
            handler.doRollover()
        finally:
            handler.close()

    def _check(self) -> None:
        status = self.path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise ConfigError(f"the record '{self.path}' is no file: choose another one")
        if status.st_mode & _OTHERS:
            raise ConfigError(
                f"the record '{self.path}' has questions of callers and may be read by others "
                f"(mode {stat.S_IMODE(status.st_mode):o}): run chmod 600 on it, or choose another file"
            )
        if status.st_size:
            with self.path.open("rb") as file:
                file.seek(-1, os.SEEK_END)
                if file.read() != b"\n":
                    raise ConfigError(
                        f"the record '{self.path}' ends in the middle of a line: remove that line, or end it"
                    )
