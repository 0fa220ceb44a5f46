"""What a way of asking must say for itself, so that its answers can be judged like those of chat.

In: a request or a piece of a response, in the shapes of one API. Out: the same in the shape that carries a verdict.
Knows neither HTTP nor the engine.
"""

from collections.abc import Sequence
from typing import Any, Protocol

from softspec.errors import SoftspecError
from softspec.server.chat.wire import Json
from softspec.server.policy.policy import Decision


class Events(Protocol):
    """The events of one streamed answer, of which it remembers what is open."""

    def precedes(self, event: Json) -> bool:
        """Whether an event says nothing of the answer, though the answer may have begun."""

    def concludes(self, event: Json) -> bool:
        """Whether this event carries the verdict: the answer is over."""

    def follows(self, event: Json) -> bool:
        """Whether an event is sent whatever became of the answer: an end or an error."""

    def passed(self, event: Json) -> Json:
        """The event as it is sent, once it is certain that it will be."""

    def withdrawal(self, decision: Decision) -> Sequence[Json]:
        """What is sent at the token that decided, in place of everything that would follow."""

    def conclusion(self, event: Json, decision: Decision, report: Json) -> Json:
        """The concluding event with the verdict; `report` has all tokens, if they were asked for."""

    def failure(self, error: SoftspecError) -> Json:
        """An event that ends the stream with an error."""


class Dialect(Protocol):
    """One API; `path` is its route."""

    path: str

    def prepare(self, request: Any) -> None:
        """Refuse, for an ensemble, what its request must not have, and settle what vLLM would get wrong.

        Raises:
            FieldError: it does.
        """

    def annotated(self, body: Json, decision: Decision, report: Json) -> Json:
        """A whole answer with the verdict, without its content if it is withheld."""

    def events(self, request: Any) -> Events:
        """The events of the answer to a request that is streamed."""

    def conversation(self, body: Json) -> Json:
        """What was asked, as chat's messages, to be kept for whoever answers it later."""

    def error_body(self, error: SoftspecError) -> Json:
        """The body of an answer that is an error."""


def with_system(turns: Sequence[Json], text: object) -> list[Json]:
    """A conversation that begins with what its system says, if anything."""
    return [{"role": "system", "content": text}, *turns] if text else [*turns]
