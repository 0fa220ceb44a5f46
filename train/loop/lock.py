"""One run in a folder: a file that no other process can lock for as long as this one lives.

In: the file's path. Out: a held lock, or who holds it. The system frees it when the process ends, however it ends.
"""

import fcntl
import os
import socket
from contextlib import suppress
from pathlib import Path

from softspec.console import tell
from softspec.errors import ConfigError


class FolderLock:
    """A held lock; close it, or drop it."""

    def __init__(self, path: Path) -> None:
        """Make the file and its folder if need be, and hold it.

        Raises:
            ConfigError: another process holds it, or nothing can be written there.
        """
        self._path, self._file = path, -1
        try:
            while self._file < 0:
                path.parent.mkdir(parents=True, exist_ok=True)
                self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
                self._hold()
                if not self._is_in_place():  # a run that ended at this moment has removed it
                    self.close()
            os.truncate(self._file, 0)
            os.write(self._file, f"{os.getpid()} on {socket.gethostname()}".encode())
        except OSError as error:
            raise ConfigError(
                f"cannot write to '{path.parent}': {error.strerror or error}; choose another output_dir"
            ) from error

    def _hold(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            owner = os.read(self._file, 1000).decode(errors="replace") or "unknown"
            raise ConfigError(
                f"another run is writing to '{self._path.parent}' (process {owner}): wait until it has ended, stop it, "
                "or choose another output_dir"
            ) from error
        except OSError as error:
            tell(f"cannot lock '{self._path}' ({error.strerror}): see to it that no other run writes there")

    def _is_in_place(self) -> bool:
        try:
            return os.path.samestat(os.fstat(self._file), self._path.stat())
        except FileNotFoundError:
            return False

    def close(self) -> None:
        """Let others have the folder."""
        if self._file >= 0:
            with suppress(OSError):
                os.close(self._file)
            self._file = -1

    def __del__(self) -> None:
        self.close()
