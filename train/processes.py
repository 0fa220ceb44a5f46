"""The processes of one run: one, or several under `torchrun` or `accelerate launch`, which share each step's examples.

In: what one process has. Out: what all of them have. Adapters and optimizer are the same in every process: gradients
are summed before they are used.
"""

import os
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn

T = TypeVar("T")


def is_main_process() -> bool:
    """As `Processes.is_main`, but before the processes have met."""
    return os.environ.get("RANK", "0") == "0"


class Processes:
    """One device a process. Every method but the properties must be called by all processes."""

    def __init__(self) -> None:
        self.accelerator = Accelerator()

    @property
    def count(self) -> int:
        """How many there are."""
        return self.accelerator.num_processes

    @property
    def index(self) -> int:
        """Which one this is."""
        return self.accelerator.process_index

    @property
    def is_main(self) -> bool:
        """Whether this one writes files and talks to the user."""
        return self.accelerator.is_main_process

    @property
    def device(self) -> torch.device:
        """Where this one computes."""
        return self.accelerator.device

    def own_indices(self, count: int) -> range:
        """Which of `count` items this one has."""
        return range(self.index, count, self.count)

    def deal(self, items: Sequence[T]) -> list[list[T]]:
        """The part of each process."""
        return [
            [items[index] for index in range(first, len(items), self.count)] for first in range(self.count)
        ]

    def gather_columns(self, table: Tensor) -> Tensor:
        """(K, N of all processes), process after process, from this one's (K, N)."""
        if self.count == 1:
            return table
        return torch.cat(gather_object([table.cpu()]), 1).to(table.device)

    def gather_dealt(self, values: Sequence[float], total: int) -> list[float]:
        """A number of each of `total` items, in order, from those of the own ones."""
        numbers = torch.tensor([values], dtype=torch.float64)
        order = [index for part in self.deal(range(total)) for index in part]
        gathered = torch.zeros(total, dtype=torch.float64)
        gathered[order] = self.gather_columns(numbers)[0]
        return gathered.tolist()

    def own_columns(self, total: int) -> slice:
        """Where this one's columns are in a gathered table of `total` dealt items."""
        sizes = [len(part) for part in self.deal(range(total))]
        before = sum(sizes[: self.index])
        return slice(before, before + sizes[self.index])

    def sum_gradients(self, weights: Sequence[nn.Parameter]) -> None:
        """Give every process the sum of all gradients."""
        if self.count == 1:
            return
        for weight in weights:
            gradient = torch.zeros_like(weight) if weight.grad is None else weight.grad
            weight.grad = self.accelerator.reduce(gradient, reduction="sum")

    def largest(self, number: int) -> int:
        """Of the numbers of all processes."""
        return max(gather_object([number]))

    def wait(self) -> None:
        """Until all have come here."""
        self.accelerator.wait_for_everyone()

    def autocast(self) -> AbstractContextManager[None]:
        """The mixed precision that `accelerate launch` was told of; none by itself."""
        return self.accelerator.autocast()
