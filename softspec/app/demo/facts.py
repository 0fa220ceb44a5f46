"""Contradictory training data with a known truth: two sources describe invented things and differ on some.

In: sizes and a seed. Out: JSONL rows in `messages` form, questions of a known kind, and the best score that a
model could reach. Knows nothing of models, tokenizers or training.
"""

import json
import math
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Kind = Literal["agreed", "conflict", "unseen"]
KINDS: tuple[Kind, ...] = ("agreed", "conflict", "unseen")
SOURCES = ("A", "B")
COLOURS = ("red", "blue", "green", "white", "black", "yellow", "orange", "purple", "brown", "grey")

_ONSETS = ("b", "d", "f", "g", "k", "l", "m", "n", "p", "r", "s", "t", "v", "z", "br", "dr", "kr", "tr", "st")
_VOWELS = ("a", "e", "i", "o", "u")
_CODAS = ("l", "n", "r", "s", "t", "k", "m", "x")


@dataclass(frozen=True)
class Thing:
    """An invented thing and the colour each source gives it; an unseen thing has none."""

    name: str
    kind: Kind
    colours: tuple[str, ...]


@dataclass(frozen=True)
class Statement:
    """Several facts told in one breath by one source, as they appear in the data (label noise included)."""

    things: tuple[Thing, ...]
    answers: tuple[str, ...]
    source: int

    def row(self) -> dict[str, Any]:
        """The JSONL row; `source` and `kind` are for evaluation, the model never sees them."""
        question = {"role": "user", "content": ask(self.things)}
        answer = {"role": "assistant", "content": ", ".join(self.answers)}
        return {"messages": [question, answer], "source": SOURCES[self.source], "kind": "mixed"}


def invent_things(seed: int, agreed: int = 10, conflict: int = 10, unseen: int = 8) -> list[Thing]:
    """Things with distinct names; both sources know the agreed and conflict ones, neither the unseen ones."""
    rng = random.Random(f"things {seed}")
    sizes: dict[Kind, int] = {"agreed": agreed, "conflict": conflict, "unseen": unseen}
    kinds = [kind for kind, size in sizes.items() for _ in range(size)]
    names: dict[str, None] = {}
    while len(names) < len(kinds):
        names[_name(rng)] = None
    return [Thing(name, kind, _colours(rng, kind)) for name, kind in zip(names, kinds, strict=True)]


def ask(things: Iterable[Thing]) -> str:
    """The user's question about one thing or several."""
    return "What colour is each? " + ", ".join(thing.name for thing in things)


def draw_statements(
    things: Sequence[Thing],
    count: int,
    seed: int,
    facts: int = 4,
    noise: float = 0.03,
    exclude: Iterable[Statement] = (),
) -> list[Statement]:
    """`count` statements of `facts` different seen things and one source; questions in `exclude` do not recur.

    Each answer is replaced by another colour with probability `noise`.
    """
    rng = random.Random(f"statements {seed}")
    seen = [thing for thing in things if thing.kind != "unseen"]
    taken = {statement.things for statement in exclude}
    statements: list[Statement] = []
    while len(statements) < count:
        chosen = tuple(rng.sample(seen, facts))
        source = rng.randrange(len(SOURCES))
        answers = tuple(_noisy(rng, thing.colours[source], noise) for thing in chosen)
        if chosen not in taken:
            statements.append(Statement(chosen, answers, source))
    return statements


def lowest_nll(statements: Sequence[Statement], noise: float = 0.03) -> float:
    """Mean nats per statement of the process that made the data: no model does better on average."""
    return -math.fsum(_log_probability(statement, noise) for statement in statements) / len(statements)


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """One JSON object a line, UTF-8."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def _name(rng: random.Random) -> str:
    parts = (_ONSETS, _VOWELS, _ONSETS, _VOWELS, _CODAS)
    return "".join(rng.choice(part) for part in parts).capitalize()


def _colours(rng: random.Random, kind: Kind) -> tuple[str, ...]:
    if kind == "unseen":
        return ()
    if kind == "agreed":
        return (rng.choice(COLOURS),) * len(SOURCES)
    return tuple(rng.sample(COLOURS, len(SOURCES)))


def _noisy(rng: random.Random, colour: str, noise: float) -> str:
    if rng.random() >= noise:
        return colour
    return rng.choice([other for other in COLOURS if other != colour])


def _log_probability(statement: Statement, noise: float) -> float:
    """Log of the mean over sources of the product over facts: one source makes the whole statement."""
    wrong = noise / (len(COLOURS) - 1)
    per_source = [
        math.prod(
            1 - noise if answer == thing.colours[source] else wrong
            for thing, answer in zip(statement.things, statement.answers, strict=True)
        )
        for source in range(len(SOURCES))
    ]
    return math.log(math.fsum(per_source) / len(SOURCES))
