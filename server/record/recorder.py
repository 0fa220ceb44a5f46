"""Keeps what the ensemble did not know, beside the serving of answers and never in their way.

In: rows. Out: lines in two files: one that training reads, one with the rest. What cannot be written costs a line in
the log and a count, never an answer.
"""

import json
import logging
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from softspec.server.record.file import RowFile
from softspec.server.record.rows import Row

_log = logging.getLogger(__name__)
MOST_WAITING = 1000
"""Rows that wait for a slow disk; what comes on top is not kept."""


class Recorder:
    """Writes rows one after the other in a thread of its own."""

    def __init__(
        self, path: Path, max_bytes: int, keep: int, on_error: Callable[[str], None] = lambda _: None
    ) -> None:
        """Make both files; `on_error` is called with the model of every row that could not be kept, from any thread.

        Raises:
            ConfigError: one of them cannot be written, or others may read it.
        """
        self._answered = RowFile(path, max_bytes, keep)
        self._unanswered = RowFile(unanswered_beside(path), max_bytes, keep)
        self._on_error = on_error
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="softspec-record")
        self._waiting: set[Future[None]] = set()

    def keep(self, model: str, row: Callable[[], Row]) -> None:
        """Have the row of a model's request made and written; returns at once."""
        if len(self._waiting) >= MOST_WAITING:
            self._lost(model, f"{MOST_WAITING} rows are waiting to be written")
            return
        future = self._thread.submit(self._write, model, row)
        self._waiting.add(future)
        future.add_done_callback(self._waiting.discard)

    def close(self) -> None:
        """Wait until all rows are written."""
        self._thread.shutdown()

    def _write(self, model: str, make: Callable[[], Row]) -> None:
        try:
            row = make()
            # What is no UTF-8 stays readable as JSON by its escapes.
            line = json.dumps(row.content, ensure_ascii=not row.is_learnable, separators=(",", ":"))
            (self._answered if row.is_learnable else self._unanswered).append(line.encode())
        except OSError as error:
            self._lost(model, error.strerror or str(error))
        except Exception as error:  # of requests and answers of any shape; none of them may be told in a log
            self._lost(model, f"it has a shape that was not expected ({type(error).__name__})")

    def _lost(self, model: str, reason: str) -> None:
        self._on_error(model)
        _log.error("a request was not recorded: %s", reason)


def unanswered_beside(path: Path) -> Path:
    """Where rows go that have no answer to learn: rows.jsonl -> rows.unanswered.jsonl."""
    return path.with_name(f"{path.stem}.unanswered{path.suffix}")


def require_writable(path: Path) -> None:
    """Raise unless rows can be recorded there; makes the files.

    Raises:
        ConfigError: one of them cannot be written, or others may read it.
    """
    for each in (path, unanswered_beside(path)):
        RowFile(each, max_bytes=0, keep=0)
