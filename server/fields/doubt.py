"""The numbers of the leaves of an answer's JSON: how far the members differ on each of its values.

In: a message, and the tokens of which it was made, with their bytes and numbers. Out: one entry for each leaf.
"""

import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate

from softspec.engine.trace import ChoiceTrace
from softspec.maths.answer import TokenUncertainty
from softspec.server.fields.alternatives import Alternative, alternatives
from softspec.server.fields.leaves import Leaf
from softspec.server.fields.message import Message
from softspec.server.fields.places import leaves_in

BytesOf = Callable[[int], bytes]
"""A token's own bytes."""


@dataclass(frozen=True)
class FieldUncertainty:
    """One leaf, in nats but for `disagreement`, the largest of its tokens'. `epistemic` and `log_prob` are sums.

    Its tokens are `num_tokens` of the answer's from `first_token` on, counted from 1: those with a byte in its JSON
    text or, behind a number, in the character that ends it.
    """

    path: str
    epistemic: float
    max_epistemic: float
    log_prob: float
    disagreement: float
    first_token: int
    num_tokens: int
    alternatives: tuple[Alternative, ...]


def doubtful_fields(
    message: Message, tokens: Sequence[TokenUncertainty], trace: ChoiceTrace, bytes_of: BytesOf
) -> list[FieldUncertainty] | None:
    """An entry for every leaf of the message's JSON; None if there is none, or none that is found in the tokens."""
    answer = _Drawn(tokens, trace, bytes_of)
    leaves = leaves_in(answer.bytes, message)
    return None if leaves is None else [answer.field(leaf) for leaf in leaves]


class _Drawn:
    """The tokens of an answer and the bytes that they spell."""

    def __init__(self, tokens: Sequence[TokenUncertainty], trace: ChoiceTrace, bytes_of: BytesOf) -> None:
        spelled = [bytes_of(token.token_id) for token in tokens]
        self.bytes = b"".join(spelled)
        self._ends = list(accumulate(map(len, spelled)))
        self._tokens = tokens
        self._trace = trace
        self._bytes_of = bytes_of
        by_member = zip(*(token.member_log_probs for token in tokens), strict=True)
        self._sums = [list(accumulate(log_probs, initial=0.0)) for log_probs in by_member]

    def field(self, leaf: Leaf) -> FieldUncertainty:
        """A leaf's numbers."""
        # That a number is not longer is decided where it ends; a string has its quote for that.
        is_number = self.bytes[leaf.start] in b"-0123456789"
        end = min(leaf.end + is_number, len(self.bytes))
        first, last = bisect_right(self._ends, leaf.start), bisect_left(self._ends, end)
        tokens = self._tokens[first : last + 1]
        epistemic = [token.epistemic for token in tokens]
        return FieldUncertainty(
            path=leaf.path,
            epistemic=math.fsum(epistemic),
            max_epistemic=max(epistemic),
            log_prob=math.fsum(token.log_prob for token in tokens),
            disagreement=max(token.disagreement for token in tokens),
            first_token=first + 1,
            num_tokens=len(tokens),
            alternatives=self._alternatives(leaf.start, first, tokens),
        )

    def _alternatives(
        self, start: int, first: int, tokens: Sequence[TokenUncertainty]
    ) -> tuple[Alternative, ...]:
        """What the members would have said at the first step of this value at which they part."""
        for place, token in enumerate(tokens, first):
            if len(set(token.member_choices)) > 1:
                at = self._ends[place - 1] if place else 0
                said, before = self.bytes[start:at], self.bytes[at:start]
                choices = [self._bytes_of(choice) for choice in token.member_choices]
                if found := alternatives(said, before, choices, self._weights_before(place)):
                    return found
        return ()

    def _weights_before(self, place: int) -> list[float]:
        """The belief in each member with which the token at this place was drawn."""
        prior = self._trace.log_weights
        if self._trace.weights_rule == "fixed":
            return [math.exp(weight) for weight in prior]
        joint = [weight + sums[place] for weight, sums in zip(prior, self._sums, strict=True)]
        top = max(joint)
        shares = [math.exp(score - top) for score in joint]
        total = math.fsum(shares)
        return [share / total for share in shares]
