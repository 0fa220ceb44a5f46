"""The request log: one line of JSON for every request that has ended, apart from everything else that is logged.

In: accounts. Out: lines on a stream. What is fetched without being asked of a model
is no news unless it fails. A line that cannot be written is lost; the request is not.
"""

import json
import logging
import math
import sys
from datetime import UTC, datetime
from typing import Any, TextIO

from softspec.server.observe.account import Account
from softspec.server.observe.middleware import Observer

LOGGER = logging.Logger("softspec.requests", logging.INFO)
"""Registered nowhere: a configuration of logging, uvicorn's for one, would take its handler away."""
_READY, _NOT_READY = "/ready", 503


def log_requests(out: TextIO) -> Observer:
    """An observer that writes a line for every account that is news."""
    LOGGER.handlers = [_Lines(out)]

    def tell(account: Account) -> None:
        if is_news(account):
            LOGGER.log(level_of(account), "%s", line_of(account))

    return tell


def is_news(account: Account) -> bool:
    """Whether to log it: pages, metrics and probes are looked at all the time."""
    path, status = account.route or account.path, account.status or 0
    if path == _READY and status == _NOT_READY:
        return False
    return status >= 400 or account.method not in ("GET", "HEAD", "OPTIONS") or path.startswith("/v1")


def level_of(account: Account) -> int:
    """How bad it is: the caller's mistakes are warnings, ours are errors."""
    status = account.status or 0
    if status >= 500 or account.error is not None:
        return logging.ERROR
    return logging.WARNING if status >= 400 else logging.INFO


def line_of(account: Account) -> str:
    """The account as JSON."""
    meter, ended_at = account.meter, account.ended_at
    fields: dict[str, Any] = {
        "ts": datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "level": logging.getLevelName(level_of(account)).lower(),
        "request_id": account.request_id,
        "trace_id": account.trace_id,
        "key": account.key,
        "model": account.model,
        "prompt_tokens": meter.prompt_tokens,
        "completion_tokens": meter.completion_tokens,
        "ttft_ms": _ms(account.began_at, meter.first_token_at),
        "tpot_ms": _ms(meter.first_token_at, meter.last_token_at, meter.completion_tokens - 1),
        "mutual_information": _number(account.mutual_information),
        "decision": account.decision,
        "status": account.status,
        "method": account.method,
        "route": account.route,
        "duration_ms": _ms(account.began_at, ended_at),
    }
    return json.dumps({**fields, **(account.content or {})}, separators=(",", ":"))


def _ms(start: float | None, end: float | None, parts: int = 1) -> float | None:
    return None if start is None or end is None or parts < 1 else round((end - start) * 1000 / parts, 3)


def _number(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else round(value, 6)


class _Lines(logging.StreamHandler[TextIO]):
    """Writes what it is given; that it cannot is said once."""

    has_failed = False

    def handleError(self, record: logging.LogRecord) -> None:
        """In place of a traceback for every line."""
        if not self.has_failed:
            self.has_failed = True
            error = sys.exception()
            logging.getLogger(__name__).error(
                "requests are no longer logged: standard output cannot be written (%s)", error
            )
