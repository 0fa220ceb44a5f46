"""How a call to an upstream can end, and which ends are worth another try.

In: what httpx2 raises and what an upstream says of itself. Out: a Fault, and from it the error that a caller may see:
one line, without addresses or control characters.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from typing import Any, Literal

import httpx2

from softspec.errors import UpstreamError

Outcome = Literal[
    "ok",
    "refused",
    "timeout",
    "status",
    "malformed",
    "cut",
    "open_circuit",
    "busy",
    "cancelled",
]
"""How a call ended: all there is of it in metrics. An UpstreamError has neither `ok` nor `cancelled`."""

MOST_SHOWN = 300
"""Characters of an upstream's own words that are passed on."""
_FINAL = (HTTPStatus.NOT_IMPLEMENTED, HTTPStatus.HTTP_VERSION_NOT_SUPPORTED, HTTPStatus.LOOP_DETECTED)
"""Statuses of 500 and more that another try does not change."""


class Fault(Exception):
    """Why one attempt failed.

    `words` are the upstream's own, as they came. `is_transient`: another attempt may succeed, and nothing of an answer
    has come yet. `retry_after_s`: how long the upstream asks to be left alone.
    """

    def __init__(
        self,
        outcome: Outcome,
        told: str,
        status: int | None = None,
        words: str = "",
        is_transient: bool = False,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(told)
        self.outcome = outcome
        self.told = told
        self.words = words
        self.status = status
        self.is_transient = is_transient
        self.retry_after_s = retry_after_s

    @property
    def is_failure(self) -> bool:
        """Whether the upstream is to blame: not for what a caller got wrong, a limit on its rate, or our own limits."""
        if self.outcome == "status":
            return self.status is None or self.status >= HTTPStatus.INTERNAL_SERVER_ERROR
        return self.outcome in ("refused", "timeout", "malformed", "cut")

    def error(self, name: str, attempts: int, secret: str) -> UpstreamError:
        """What whoever asked is told; the upstream may have repeated the secret that it was sent."""
        words = _plain(self.words.replace(secret, "[key]") if secret else self.words)
        told = f"{self.told}: {words}" if words else self.told
        tries = f" ({attempts} attempts)" if attempts > 1 else ""
        return UpstreamError(f"upstream '{name}' {told}{tries}", self.outcome, self.status)


@contextmanager
def faults_of_http(has_begun: bool) -> Iterator[None]:
    """What httpx2 raises within becomes a Fault; once an answer has begun, nothing is worth another try.

    Raises:
        Fault: the connection, or what came over it, is no good.
    """
    try:
        yield
    except httpx2.PoolTimeout as error:
        raise Fault("busy", "was not asked: all of this server's connections are in use") from error
    except httpx2.TimeoutException as error:
        raise Fault("timeout", "did not accept a connection in time", is_transient=not has_begun) from error
    except (httpx2.ConnectError, httpx2.ProxyError) as error:
        raise Fault("refused", f"cannot be reached: {_reason(error)}", is_transient=not has_begun) from error
    except (httpx2.DecodingError, httpx2.SSEError) as error:
        raise Fault("malformed", "sent what cannot be read", words=str(error)) from error
    except httpx2.RequestError as error:
        where = "in the middle of its answer" if has_begun else "before it answered"
        raise Fault("cut", f"closed the connection {where}", is_transient=not has_begun) from error


def fault_of_status(status: int, body: bytes, retry_after_s: float | None) -> Fault:
    """What an answer other than 200 means."""
    if HTTPStatus.OK <= status < HTTPStatus.MULTIPLE_CHOICES:
        return Fault("malformed", f"answered with status {status}: expected 200 and an answer", status)
    if HTTPStatus.MULTIPLE_CHOICES <= status < HTTPStatus.BAD_REQUEST:
        told = f"answered with status {status}: redirects are not followed; its url must be the final one"
        return Fault("status", told, status)
    told = f"answered with status {status}"
    return Fault("status", told, status, _words(body), is_transient(status), retry_after_s)


def fault_in(document: dict[str, Any], has_begun: bool) -> Fault | None:
    """The error that an upstream put in place of an answer, or of its next part."""
    error = document.get("error")
    if not error:
        return None
    words = _message(document) or ""
    if has_begun:
        return Fault("cut", "ended its answer with an error", words=words)
    code = error.get("code") if isinstance(error, dict) else None
    is_status = isinstance(code, int) and not isinstance(code, bool) and 400 <= code < 600
    status = code if is_status else None
    return Fault("status", "answered with an error", status, words, status is None or is_transient(status))


def is_transient(status: int) -> bool:
    """Whether the same request may get another answer later."""
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        return True
    return status >= HTTPStatus.INTERNAL_SERVER_ERROR and status not in _FINAL


def _plain(text: str) -> str:
    """A text in one line of printable characters, cut where it is long."""
    words = " ".join(text[: 4 * MOST_SHOWN].split())
    line = "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in words)
    return line if len(line) <= MOST_SHOWN else line[: MOST_SHOWN - 3] + "..."


def _reason(error: Exception) -> str:
    """Why a connection was not made, from the errors beneath, of which only some name no address."""
    chain: BaseException | None = error
    while chain is not None:
        if "Errno -" in str(chain) or type(chain).__name__ == "gaierror":
            return "its host is not known"
        if "CERTIFICATE_VERIFY_FAILED" in str(chain):
            return "its certificate is not trusted"
        if "SSL" in type(chain).__name__ or "SSL" in str(chain):
            return "no TLS connection could be made"
        if isinstance(chain, ConnectionRefusedError):
            return "connection refused"
        chain = chain.__cause__ or chain.__context__
    return "no connection could be made"


def _words(body: bytes) -> str:
    """What an upstream says of an error, wherever in its answer it stands."""
    text = body.decode("utf-8", "replace")
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        return "" if text.lstrip().startswith("<") else text  # a page for a browser says nothing in one line
    return _message(document) or ""


def _message(document: Any) -> str | None:
    if isinstance(document, str):
        return document
    if isinstance(document, dict):
        found = (_message(document.get(key)) for key in ("error", "message", "detail"))
        return next((text for text in found if text), None)
    return None
