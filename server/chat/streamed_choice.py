"""One choice of a streamed answer: judged as it grows, and held back for as long as it may still be replaced.

In: the choice's parts of vLLM's chunks, and the trace that the engine fills meanwhile. Out: those that may be sent now.
Knows neither HTTP nor upstreams.
"""

from collections.abc import Sequence
from enum import Enum, auto
from typing import NamedTuple

from softspec.engine.trace import ChoiceTrace, RequestTrace
from softspec.maths.answer import TokenUncertainty
from softspec.server.chat.replies import choice_trace
from softspec.server.chat.wire import Json
from softspec.server.policy.policy import ANSWER, Policy
from softspec.server.policy.running import RunningDecision, held_of


class Piece(NamedTuple):
    """A choice's part of one chunk, and the tokens that came with it."""

    chunk: Json
    choice: Json
    tokens: Sequence[TokenUncertainty]

    @property
    def opens_message(self) -> bool:
        """Whether this is a chat's first, which names the role; the text of the first token comes with the next."""
        delta = self.choice.get("delta")
        if not delta or delta.keys() != {"role", "content"} or delta["content"]:
            return False
        return not self.choice.get("finish_reason")

    @property
    def is_last(self) -> bool:
        return bool(self.choice.get("finish_reason"))


class Phase(Enum):
    """Who answers: the ensemble, not yet known, the ensemble as the upstream failed, the upstream, nobody any more."""

    JUDGED = auto()
    ASKED = auto()
    KEPT = auto()
    ROUTED = auto()
    OVER = auto()


class StreamedChoice:
    """What of a choice was judged, is held back and was decided."""

    def __init__(self, index: int, policy: Policy, request: RequestTrace) -> None:
        self.index = index
        self.phase = Phase.JUDGED
        self.decision = ANSWER
        self.withheld: Piece | None = None
        """The piece with which the choice was decided."""
        self._policy = policy
        self._request = request
        self._running: RunningDecision | None = None
        self._held: list[Piece] = []
        self._num_held = held_of(policy)
        self._num_seen = 0

    @property
    def trace(self) -> ChoiceTrace:
        """What the engine measured.

        Raises:
            EngineError: nothing.
        """
        return choice_trace(self._request, self.index)

    @property
    def tokens(self) -> Sequence[TokenUncertainty]:
        """The tokens that the numbers are about: those that were judged, or all of an answer that is kept."""
        if self.phase == Phase.KEPT or self._running is None:
            return self.trace.tokens
        return self._running.tokens()

    def take(self, chunk: Json, choice: Json) -> list[Piece]:
        """Judge what is new; returns the pieces that may be sent now.

        Once the choice is decided, `decision` and `withheld` say so.
        """
        piece = Piece(chunk, choice, ())
        if not piece.opens_message:
            piece = piece._replace(tokens=self._catch_up())
            if self.phase == Phase.JUDGED and self.decision.action != "answer":
                self.withheld = piece
        self._held.append(piece)
        if self.phase == Phase.KEPT or (self.phase == Phase.JUDGED and self._is_safe(piece)):
            return self.release()
        return []

    def release(self) -> list[Piece]:
        """All pieces that are held, to be sent now."""
        pieces, self._held = self._held, []
        return pieces

    def drop(self) -> list[Piece]:
        """Forget the answer; returns what opened the message, which is no part of it."""
        return [piece for piece in self.release() if piece.opens_message]

    def _is_safe(self, last: Piece) -> bool:
        if self.withheld is not None:
            return False
        num_judged = self._running.num_tokens if self._running is not None else 0
        return last.is_last or num_judged >= self._num_held

    def _catch_up(self) -> Sequence[TokenUncertainty]:
        """The tokens since the last piece, judged."""
        if self._running is None:
            self._running = RunningDecision(self._policy, self.trace, streamed=True)
        self._running.catch_up()
        if self.phase == Phase.JUDGED:
            self.decision = self._running.decision
        new = self.trace.tokens[self._num_seen :]
        self._num_seen += len(new)
        return new
