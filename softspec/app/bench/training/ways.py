"""What the ways to a training step have in common: they take steps, and tell how long these took.

All have the same data, begin with the same adapters and use AdamW with clipped gradients. The learning rate is so small
that the adapters stay what they are. Ways with one loss over all members also have `gradients`, to be compared.
"""

import statistics
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

LEARNING_RATE = 1e-9
MAX_GRAD_NORM = 1.0
CHECKED_EXAMPLES = 2
"""Whose gradients are compared, one at a time so that it needs less memory than a step."""
ROUTING = ("routing_perplexity", "active_members", "skipped_responsibility")


@dataclass(frozen=True)
class Timing:
    """How long optimizer steps took: `step_s` seconds each, the mean.

    `routing`: the means of what `ROUTING` names, where the way tells.
    """

    step_s: float
    routing: dict[str, float] | None = None


class Way(ABC):
    """One way to a training step, ready to take steps."""

    model: Any
    """The base with its adapters."""

    @abstractmethod
    def run(self, steps: int) -> Timing:
        """Take and time so many optimizer steps."""


class SteppingWay(Way):
    """A way whose optimizer steps are functions of its own."""

    def run(self, steps: int) -> Timing:
        synchronize()
        started = time.perf_counter()
        facts = [self.optimizer_step() for _ in range(steps)]
        synchronize()
        took = time.perf_counter() - started
        known = [fact for fact in facts if fact is not None]
        routing = (
            {name: statistics.fmean(fact[name] for fact in known) for name in ROUTING} if known else None
        )
        return Timing(took / steps, routing)

    @abstractmethod
    def optimizer_step(self) -> dict[str, float] | None:
        """Take one step; returns what it tells of the routing, by the names in `ROUTING`."""


@contextmanager
def in_float32(model: nn.Module) -> Iterator[None]:
    """Compute with the base's bfloat16 weights widened, so that the order of operations does not show."""
    narrow = [weight for weight in model.parameters() if weight.dtype == torch.bfloat16]
    for weight in narrow:
        weight.data = weight.data.float()
    try:
        yield
    finally:
        for weight in narrow:
            weight.data = weight.data.bfloat16()


def synchronize() -> None:
    """Wait until all that was asked of a GPU is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
