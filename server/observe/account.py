"""The account of one HTTP request: who asked, what was asked of whom, what it cost and how it ended.

In: what the layers that a request passes know of it. Out: one object to whoever tells of it. Holds no text of a prompt
or an answer, unless the server was told to log them. Knows neither FastAPI nor vLLM.
"""

import time
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from softspec.engine.meter import Meter

CLIENT_WENT_AWAY = 499
"""The status of a request whose client left before its answer began, as nginx writes it."""


@dataclass(frozen=True)
class Judgement:
    """What was decided on one answer, and when: `at` is in nanoseconds of the clock on the wall.

    `reason` has numbers alone; None where the policy did not object.
    """

    decision: str
    mutual_information: float | None
    reason: str | None = None
    at: int = field(default_factory=time.time_ns)


@dataclass
class Account:
    """Filled on a request's way; None where nothing is known, or not yet.

    `key` is the name of the caller's API key, `route` the path as the app names it. Of several choices `decision` and
    `mutual_information` are those of the one that the members disagreed on most; `judgements` has all. `answered_by`
    is the upstream's model, where one answered, `error` the kind of a failure that its status does not tell, as it came
    after the beginning of a stream, `content` what was asked and said.
    """

    request_id: str
    method: str
    path: str
    trace_id: str | None = None
    key: str | None = None
    route: str | None = None
    model: str | None = None
    answered_by: str | None = None
    mutual_information: float | None = None
    decision: str | None = None
    judgements: list[Judgement] = field(default_factory=list)
    error: str | None = None
    content: dict[str, Any] | None = None
    status: int | None = None
    began_at: float = field(default_factory=time.monotonic)
    ended_at: float | None = None
    meter: Meter = field(default_factory=Meter)

    def judged(self, decision: str, mutual_information: float | None, reason: str | None = None) -> None:
        """Note what was decided on one answer."""
        self.judgements.append(Judgement(decision, mutual_information, reason))
        known = self.mutual_information
        if self.decision is None or (mutual_information or 0.0) > (known or 0.0):
            self.mutual_information, self.decision = mutual_information, decision


current_account: ContextVar[Account | None] = ContextVar("softspec_account", default=None)


def note_model(model: str) -> None:
    """Note on the request's account which model is asked."""
    if (account := current_account.get()) is not None:
        account.model = model


def note_decision(
    decision: str,
    mutual_information: float | None = None,
    reason: str | None = None,
    answered_by: str | None = None,
) -> None:
    """Note on the request's account what was decided on one of its answers."""
    if (account := current_account.get()) is not None:
        account.judged(decision, mutual_information, reason)
        account.answered_by = answered_by or account.answered_by


def note_error(kind: str) -> None:
    """Note on the request's account that its answer failed after it had begun."""
    if (account := current_account.get()) is not None:
        account.error = kind
