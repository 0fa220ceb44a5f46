"""Tensors in files by key, in one folder that many runs share, one after the other or at once.

In: tensors and keys. Out: the same tensors later, as long as there is room for them. A file is whole or is not there:
whoever finds none computes again. Knows nothing of models.
"""

import os
import tempfile
from collections.abc import Mapping, Set
from contextlib import suppress
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from softspec.console import tell

Tensors = Mapping[str, Tensor]
BEING_WRITTEN = ".new"
"""The ending of a file that is not whole yet."""


class Kept:
    """A folder of kept tensors; it is made when the first ones are."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._takes_more = True

    def read(self, key: str) -> Tensors | None:
        """What was kept under this key, on the CPU and mapped from the file; None if it is not there."""
        try:
            return load_file(self._path(key))
        except (OSError, SafetensorError):  # not there, or damaged, and then written anew
            return None

    def write(self, key: str, tensors: Tensors) -> None:
        """Keep these tensors. A disk that is full, or does not want to, costs one line and no more than that."""
        if not self._takes_more:
            return
        try:
            self._write(self._path(key), save({name: each.contiguous() for name, each in tensors.items()}))
        except OSError as error:
            self._takes_more = False
            tell(
                f"'{self.folder}' takes no more: {error.strerror or error}; what is not there is computed in every step"
            )

    def _write(self, path: Path, content: bytes) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        number, name = tempfile.mkstemp(suffix=BEING_WRITTEN, dir=path.parent)
        try:
            with os.fdopen(number, "wb") as file:
                file.write(content)
            # Not synced: if a machine dies now, a file without all of its data is read as damaged.
            os.replace(name, path)
        except BaseException:
            with suppress(OSError):
                os.unlink(name)
            raise

    def use(self, keys: Set[str]) -> int:
        """Mark what is kept under these keys as used just now; returns how many bytes it has."""
        used = 0
        for path in map(self._path, keys):
            with suppress(OSError):
                os.utime(path)
                used += path.stat().st_size
        return used

    def make_room(self, wanted: int, limit: int, keys: Set[str]) -> None:
        """Delete what was not used for longest, but nothing under these keys, until `wanted` bytes more are in `limit`.

        What another run is using may go too: it computes that again.
        """
        needed = set(map(self._path, keys))
        found = []
        for path in self.folder.glob("*/*"):
            with suppress(OSError):
                facts = path.stat()
                found.append((facts.st_mtime, facts.st_size, path))
        total = wanted + sum(size for _, size, _ in found)
        for _, size, path in sorted(found):
            if total <= limit:
                return
            if path not in needed:
                path.unlink(missing_ok=True)
                total -= size

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / key
