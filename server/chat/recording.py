"""The row that is kept of a choice which the ensemble did not answer, or should not have.

In: what became of the choice, and the request for it. Out: the row. Called in the recorder's thread.
"""

from datetime import UTC, datetime

from softspec.server.chat.forwarding import Forwarding
from softspec.server.chat.replies import Outcome
from softspec.server.chat.wire import EXTENSION, full_report
from softspec.server.record.rows import Json, Row, row_of


def recorded(outcome: Outcome, model: str, forwarding: Forwarding, seconds: float) -> Row:
    """The row of a choice of this ensemble that was decided at this time, in seconds since 1970."""
    return row_about(outcome, model, forwarding.body_for(outcome.index), seconds)


def row_about(outcome: Outcome, model: str, body: Json, seconds: float) -> Row:
    """The same, of a choice for which this was asked."""
    decision, answer = outcome.decision, outcome.forwarded
    about: Json = {
        "model": model,
        "decision": decision.action,
        "reason": decision.reason,
        "time": datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds"),
        EXTENSION: full_report(outcome.trace, outcome.tokens, decision, "summary"),
    }
    if answer is not None:
        about["answered_by"] = answer.model
    return row_of(body, about, answer.choice if answer is not None else None)
