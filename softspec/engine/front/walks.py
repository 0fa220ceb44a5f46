"""The walks through the tokens of known options: which tokens to force, and at which steps to look at which others.

In: options, as token ids. Out: walks, each of which becomes one group. An option's last token needs no step of its own:
it is read at the step before it would be drawn, beside every other option that ends there. Knows no engine.
"""

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

    def reads(self, option: Tokens) -> bool:
        """Whether this walk tells all that an option's probability is made of."""
        last = len(option) - 1
        return self.path[:last] == option[:last] and option[last] in self.watched.get(last, ())


def walks_through(options: Iterable[Sequence[int]], most_watched: int) -> list[Walk]:
    """As few walks as read every option, none of which is empty; no step watches more than `most_watched` tokens."""
    ends: dict[Tokens, list[int]] = {}
    for option in dict.fromkeys(map(tuple, options)):
        assert option, "an empty option has no token that could be read"
        ends.setdefault(option[:-1], []).append(option[-1])
    walks: list[Walk] = []
    # Longest first: shorter ones are read on the way.
    for path in sorted(ends, key=len, reverse=True):
        step, tokens = len(path), ends[path]
        passing = iter([walk for walk in walks if walk.path[:step] == path])
        for start in range(0, len(tokens), most_watched):
            walk = next(passing, None)
            if walk is None:
                walk = Walk(path)
                walks.append(walk)
            walk.watched[step] = tuple(tokens[start : start + most_watched])
    return walks
