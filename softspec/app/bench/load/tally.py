"""What a server said of its answers: status codes, decisions, uncertainty.

In: status and body of every answer, an event stream. Out: counts. Knows OpenAI's events and our `uncertainty` in them.
"""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any


@dataclass
class Tally:
    """Counts of what was heard; `mutual_information` is of every choice that was measured, in nats."""

    statuses: Counter[str] = field(default_factory=Counter)
    decisions: Counter[str] = field(default_factory=Counter)
    mutual_information: list[float] = field(default_factory=list)

    def hear(self, status: int | None, body: bytes) -> str | None:
        """Count an answer; returns the error that ended its stream, if one did."""
        self.statuses["no answer" if status is None else str(status)] += 1
        failure = None
        for event in _events(body):
            if "error" in event:
                failure = str(event["error"].get("message", event["error"]))
            for choice in event.get("choices", ()):
                if choice.get("finish_reason") == "error":
                    failure = "the answer ended with an error"
                self._count(choice.get("uncertainty") or {})
        return failure

    def _count(self, uncertainty: dict[str, Any]) -> None:
        """What the last chunk of an answer says."""
        if "decision" in uncertainty:
            self.decisions[uncertainty["decision"]] += 1
            if (found := uncertainty.get("mutual_information")) is not None:
                self.mutual_information.append(found)

    @property
    def mean_mutual_information(self) -> float | None:
        return fmean(self.mutual_information) if self.mutual_information else None


def _events(body: bytes) -> Iterator[dict[str, Any]]:
    """The events that say more than the next piece of text."""
    for line in body.splitlines():
        told = any(word in line for word in (b'"uncertainty"', b'"error"'))
        if told and line.startswith(b"data: "):
            yield json.loads(line.removeprefix(b"data: "))
