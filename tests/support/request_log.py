"""The lines of the request log, read beside whatever reads them.

In: a server of this process that logs its requests. Out: the fields of every line.
"""

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from softspec.server.observe.log import LOGGER


class _Kept(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[dict[str, Any]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(json.loads(record.getMessage()))


@contextmanager
def request_lines() -> Iterator[list[dict[str, Any]]]:
    """The lines that are written inside this block."""
    kept = _Kept()
    LOGGER.addHandler(kept)
    try:
        yield kept.lines
    finally:
        LOGGER.removeHandler(kept)
