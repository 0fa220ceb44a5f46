"""What the members would rather have said in the place of a value, as far as one step tells.

In: what an answer has of a value before a step, and the token that each member finds likeliest at that step. Out: the
beginnings, if the members part there. What would have come after that step nobody has computed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from softspec.server.fields.leaves import read_json


@dataclass(frozen=True)
class Alternative:
    """JSON text with which `members` would have begun the value, or that is all of it if it is `complete`.

    `text` is what the answer has of the value before the step, and the token that these members find likeliest there.
    `weight` is the belief in them at that step, a share.
    """

    text: str
    complete: bool
    weight: float
    members: tuple[int, ...]


@dataclass(frozen=True)
class _Beginning:
    text: bytes
    complete: bool

    def may_become(self, other: "_Beginning") -> bool:
        """Whether both can be the same value."""
        shorter, longer = sorted((self, other), key=lambda each: len(each.text))
        if shorter.complete:
            return shorter == longer
        return longer.text.startswith(shorter.text)


def alternatives(
    said: bytes, before: bytes, choices: Sequence[bytes], weights: Sequence[float]
) -> tuple[Alternative, ...]:
    """What the members would have said of a value, the likeliest first; empty if they do not part at this step.

    `said` is what the answer has of the value before this step; where that is nothing, `before` is what the answer's
    own token has before the value. Members that choose other tokens but may mean the same value, as with another
    space before it, have not parted.
    """
    by_choice = {choice: _beginning(said, before, choice) for choice in set(choices)}
    beginnings = [by_choice[choice] for choice in choices]
    if all(one.may_become(other) for one, other in combinations(by_choice.values(), 2)):
        return ()
    found = []
    for beginning in dict.fromkeys(beginnings):
        members = tuple(k for k, each in enumerate(beginnings) if each == beginning)
        text = beginning.text.decode("utf-8", "replace")
        found.append(Alternative(text, beginning.complete, sum(weights[k] for k in members), members))
    return tuple(sorted(found, key=lambda each: -each.weight))


def _beginning(said: bytes, before: bytes, token: bytes) -> _Beginning:
    text = said + token if said else token.removeprefix(before).lstrip()
    read = read_json(text)
    # A number with which the text ends may go on.
    is_whole = read.state == "finished" and not (read.end == len(text) and text[:1] in b"-0123456789")
    return _Beginning(text[: read.end] if is_whole else text, is_whole)
