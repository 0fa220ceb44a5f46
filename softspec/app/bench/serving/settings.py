"""What `softspec bench serve` measures: the ways to an answer, the cells of users and prompt lengths, their order.

Holds every setting with its default, its flag and its help. Knows no engine.
"""

import random
from dataclasses import dataclass

from softspec.app.bench.core.flags import WholeNumber
from softspec.artefact.manifest import Manifest
from softspec.errors import ConfigError

WAYS = {
    "member": "one adapter, as an ordinary vLLM LoRA request",
    "ensemble": "K adapters in lockstep, mixed, with the uncertainty numbers",
    "unshared": "the ensemble with its lower layers computed for every member",
    "mixture": "the ensemble without the uncertainty numbers",
    "members": "K ordinary vLLM LoRA requests at once, which cannot mix",
    "client": "an HTTP client that mixes the K members' top 20 of an unmodified vLLM server, token by token",
    "reference": "softspec's decode loop in transformers and PEFT; one user, CPU only",
}


@dataclass(frozen=True)
class Cell:
    """So many users at once, each with a prompt of so many tokens."""

    concurrency: int
    prompt_tokens: int

    def __str__(self) -> str:
        users = "1 user" if self.concurrency == 1 else f"{self.concurrency} users"
        return f"{users} x {self.prompt_tokens} prompt tokens"


@dataclass(frozen=True)
class BenchSettings:
    """The default prompts: shorter than one block of shared prompt (32 tokens), and long, ending half-way in one."""

    ways: tuple[str, ...] = tuple(WAYS)
    """what is measured, from the list below"""
    concurrency: tuple[WholeNumber, ...] = (1, 4, 16)
    """users at once; every pair with --prompt-tokens is measured"""
    prompt_tokens: tuple[WholeNumber, ...] = (32, 1008)
    """tokens of a prompt"""
    output_tokens: WholeNumber = 16
    """tokens of an answer"""
    repeats: WholeNumber = 5
    """how often every way has a turn"""
    seed: WholeNumber = 0
    """seed of prompts and of the order of turns"""

    def __post_init__(self) -> None:
        unknown = [way for way in self.ways if way not in WAYS]
        if unknown:
            raise ConfigError(f"--ways has '{unknown[0]}': expected some of {', '.join(WAYS)}")
        least = {
            "--concurrency": (min(self.concurrency), 1),
            "--prompt-tokens": (min(self.prompt_tokens), 1),
            "--output-tokens": (self.output_tokens, 3),
            "--repeats": (self.repeats, 1),
        }
        for flag, (found, allowed) in least.items():
            if found < allowed:
                raise ConfigError(f"{flag} is {found}: expected at least {allowed}")

    @property
    def cells(self) -> list[Cell]:
        """Small ones first."""
        return [
            Cell(concurrency, prompt_tokens)
            for prompt_tokens in sorted(set(self.prompt_tokens))
            for concurrency in sorted(set(self.concurrency))
        ]

    def ways_of(self, cell: Cell) -> list[str]:
        return [way for way in WAYS if way in self.ways and (way != "reference" or cell.concurrency == 1)]

    @property
    def left_out(self) -> list[str]:
        """What a reader might miss, and why it is not there."""
        missing = [f"{way}: not among --ways" for way in WAYS if way not in self.ways]
        if "reference" in self.ways:
            missing += [
                f"reference at {cell}: it answers one user" for cell in self.cells if cell.concurrency > 1
            ]
        return missing

    def room(self, manifest: Manifest) -> tuple[int, int]:
        """Rows that the largest cell has in an engine at once, and the tokens of each.

        While a shared prompt is computed it has a row of its own.
        """
        rows = manifest.num_members + (manifest.activation.block_size is not None)
        return max(self.concurrency) * rows, max(self.prompt_tokens) + self.output_tokens

    def order(self, cell: Cell, repeat: int) -> list[str]:
        """The ways of a cell, shuffled anew for every repeat."""
        ways = self.ways_of(cell)
        random.Random(f"{self.seed} order {cell} {repeat}").shuffle(ways)
        return ways

    def prompts(self, cell: Cell, repeat: int, way: str, vocab_size: int) -> list[list[int]]:
        """Random token ids that no way has seen before, so that no prefix cache knows them."""
        draw = random.Random(f"{self.seed} prompts {cell} {repeat} {way}")
        return [draw.choices(range(vocab_size), k=cell.prompt_tokens) for _ in range(cell.concurrency)]
