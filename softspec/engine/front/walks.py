"""The walks through the tokens of known options: which tokens to force, and at which steps to look at which others.

In: options, as token ids. Out: walks, each of which becomes one group. An option's last token needs no step of its own:
it is read at the step before it would be drawn, beside every other option that ends there. Knows no engine.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

Tokens = tuple[int, ...]


@dataclass
class Walk:
    """A way down the options: the tokens before the last step, and the tokens that are watched at each step."""

    path: Tokens
    watched: dict[int, Tokens] = field(default_factory=dict)

    @property
    def forced(self) -> Tokens:
        """The tokens of all steps; which one the last step draws does not matter, as none comes after it."""
        return *self.path, self.watched[len(self.path)][0]

    @property
    def watched_by_step(self) -> tuple[Tokens, ...]:
        """What is watched at step 0, 1, ...: as many as there are forced tokens."""
        return tuple(self.watched.get(step, ()) for step in range(len(self.path) + 1))


@dataclass
class Plan:
    """The walks through some options, and for each option the number of the walk in which it is read."""

    walks: list[Walk]
    walk_of: dict[Tokens, int]


def walks_through(options: Iterable[Sequence[int]], most_watched: int) -> Plan:
    """As few walks as read every option, none of which is empty; no step watches more than `most_watched` tokens."""
    ends: dict[Tokens, list[int]] = {}
    for option in dict.fromkeys(map(tuple, options)):
        assert option, "an empty option has no token that could be read"
        ends.setdefault(option[:-1], []).append(option[-1])
    plan, passing = Plan([], {}), defaultdict[Tokens, list[int]](list)
    # Longest first: shorter ones are read on the way.
    for path in sorted(ends, key=len, reverse=True):
        numbers, tokens = iter([*passing[path]]), ends[path]
        for start in range(0, len(tokens), most_watched):
            number = next(numbers, len(plan.walks))
            if number == len(plan.walks):
                plan.walks.append(Walk(path))
                for step in range(len(path) + 1):
                    passing[path[:step]].append(number)
            watched = tuple(tokens[start : start + most_watched])
            plan.walks[number].watched[len(path)] = watched
            plan.walk_of |= {(*path, token): number for token in watched}
    return plan
