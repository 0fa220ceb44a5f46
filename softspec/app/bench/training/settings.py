"""What `softspec bench train` measures: the ways to a training step, the cells, their order.

Holds every setting with its default, its flag and its help. Knows no model, and imports none.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Annotated

from cyclopts import Parameter

from softspec.app.bench.core.flags import LayersText, WholeNumber, parse_layers
from softspec.errors import ConfigError

WAYS = {
    "softspec": "`softspec train`, first epoch: K members in one step, adapters off for the whole blocks of the "
    "prompt; what is frozen of each new example is computed and kept",
    "softspec-later": "the same steps in a later epoch, where all that is frozen is found",
    "softspec-unkept": "the same steps with frozen_cache_gb 0: nothing is kept",
    "softspec-always": "`softspec` with adapters on everywhere, which is what the other ways compute",
    "peft-switching": "one PEFT model: K forward passes whose graphs are kept, the same loss, one backward pass",
    "peft-mixed": "one PEFT model: K x B rows in one pass with adapter_names, the same loss",
    "peft-separate": "K independent PEFT runs, one after another, each with its own mean NLL",
    "trl": "the same K runs in TRL's SFTTrainer",
}
JOINT = tuple(way for way in WAYS if way not in ("peft-separate", "trl"))
"""The ways with one loss over all members: their gradients must agree."""
REGIMES = {
    "start": "B = 0: all members equal",
    "specialised": "random A and B: members differ by tens of nats",
}
MICRO_BATCHES = 2
"""In one optimizer step."""


@dataclass(frozen=True)
class Cell:
    """Examples of so many tokens, for so many members, in one regime."""

    prompt_tokens: int
    completion_tokens: int
    members: int
    regime: str

    def __str__(self) -> str:
        return f"{self.prompt_tokens}/{self.completion_tokens} tokens, K = {self.members}, {self.regime}"


def parse_lengths(texts: Sequence[str]) -> tuple[tuple[int, int], ...]:
    """Read `PROMPT/COMPLETION`, in tokens.

    Raises:
        ConfigError: something else.
    """
    pairs = []
    for text in texts:
        prompt, _, completion = text.partition("/")
        if not (prompt.isdecimal() and completion.isdecimal()):
            raise ConfigError(f"--lengths has '{text}': expected PROMPT/COMPLETION in tokens, such as 256/32")
        pairs.append((int(prompt), int(completion)))
    return tuple(pairs)


@dataclass(frozen=True)
class BenchSettings:
    """Everything that can be chosen about the benchmark: every way is measured in every cell."""

    ways: tuple[str, ...] = tuple(WAYS)
    """what is measured, from the list below"""
    lengths: Annotated[
        tuple[tuple[int, int], ...],
        Parameter(
            n_tokens=1,
            converter=lambda _, tokens: parse_lengths([token.value for token in tokens]),
            metavar="P/C...",
        ),
    ] = ((256, 32), (75, 3), (32, 8))
    """tokens of a prompt and of its completion"""
    members: tuple[WholeNumber, ...] = (4, 8)
    """members of the ensemble"""
    regimes: tuple[str, ...] = tuple(REGIMES)
    """how different the members are, from the list below"""
    batch: WholeNumber = 4
    """examples of a micro-batch, two of which are a step"""
    rank: WholeNumber = 16
    """rank of every adapter"""
    layers: LayersText = "all"
    """decoder layers that have adapters, counted from 0"""
    renyi_alpha: Annotated[float, Parameter(name="--alpha")] = 0.8
    """order of the objective, 0 to 1"""
    repeats: WholeNumber = 5
    """how often every way has a turn"""
    steps: WholeNumber = 2
    """optimizer steps of a turn"""
    seed: WholeNumber = 0
    """seed of data, adapters and of the order of turns"""
    has_trl: Annotated[bool, Parameter(parse=False)] = field(
        default_factory=lambda: find_spec("trl") is not None
    )

    def __post_init__(self) -> None:
        for flag, names, known in (("--ways", self.ways, WAYS), ("--regimes", self.regimes, REGIMES)):
            unknown = [name for name in names if name not in known]
            if unknown:
                raise ConfigError(f"{flag} has '{unknown[0]}': expected some of {', '.join(known)}")
        parse_layers(self.layers)
        least = {
            "--lengths": (min(min(pair) for pair in self.lengths), 1),
            "--members": (min(self.members), 1),
            "--batch": (self.batch, 1),
            "--rank": (self.rank, 1),
            "--repeats": (self.repeats, 1),
            "--steps": (self.steps, 1),
        }
        for flag, (found, allowed) in least.items():
            if found < allowed:
                raise ConfigError(f"{flag} is {found}: expected at least {allowed}")
        if not 0 <= self.renyi_alpha <= 1:
            raise ConfigError(f"--alpha is {self.renyi_alpha:g}: expected 0 to 1")

    @property
    def cells(self) -> list[Cell]:
        """All cells, small ones first."""
        return [
            Cell(prompt, completion, members, regime)
            for prompt, completion in sorted(set(self.lengths), key=sum)
            for members in sorted(set(self.members))
            for regime in REGIMES
            if regime in self.regimes
        ]

    @property
    def measured_ways(self) -> list[str]:
        """The ways that are asked for and can run here."""
        return [way for way in WAYS if way in self.ways and (way != "trl" or self.has_trl)]

    @property
    def left_out(self) -> list[str]:
        """The ways that a reader might miss, and why they are not there."""
        missing = [f"{way}: not among --ways" for way in WAYS if way not in self.ways]
        return missing + ["trl: not installed"] * ("trl" in self.ways and not self.has_trl)

    @property
    def examples_per_step(self) -> int:
        """How many examples one optimizer step sees."""
        return MICRO_BATCHES * self.batch

    @property
    def steps_per_cell(self) -> int:
        """How many optimizer steps each way takes in a cell: one to warm up, then those of its turns."""
        return 1 + self.repeats * self.steps

    def order(self, cell: Cell, repeat: int) -> list[str]:
        """The ways in their order within a repeat, shuffled anew for each."""
        ways = self.measured_ways
        random.Random(f"{self.seed} order {cell} {repeat}").shuffle(ways)
        return ways
