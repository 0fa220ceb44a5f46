"""The processes of one run: one, or several under `torchrun` or `accelerate launch`, which share each step's examples.

In: what one process has. Out: what all of them have. Adapters and optimizer are the same in every process: gradients
are summed before they are used.
"""

import os
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import TypeVar, cast

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn

T = TypeVar("T")


def is_main_process() -> bool:
    """Whether this process writes files and talks to the user; known before the processes have met."""
    return os.environ.get("RANK", "0") == "0"


class Processes:
    """The processes of a run, one device each; every method but the properties must be called by all of them."""

    def __init__(self) -> None:
        self.accelerator = Accelerator()

    @property
    def count(self) -> int:
        """How many processes there are."""
        return self.accelerator.num_processes

    @property
    def index(self) -> int:
        """The number of this process."""
        return self.accelerator.process_index

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and talks to the user."""
        return self.accelerator.is_main_process

    @property
    def device(self) -> torch.device:
        """The device on which this process computes."""
        return self.accelerator.device

    def own_indices(self, count: int) -> range:
        """Which of `count` items are this process's own."""
        return range(self.index, count, self.count)

    def deal(self, items: Sequence[T]) -> list[list[T]]:
        """The items dealt out: the part of each process."""
        return [
            [items[index] for index in range(first, len(items), self.count)] for first in range(self.count)
        ]

    def gather_columns(self, table: Tensor) -> Tensor:
        """The tables (K, N) of all processes side by side, process after process, from this one's."""
        if self.count == 1:
            return table
        return torch.cat(gather_object([table.cpu()]), 1).to(table.device)

    def gather_dealt(self, values: Sequence[float], total: int) -> list[float]:
        """A number for each of `total` dealt items, in order, from those of this process's own ones."""
        numbers = torch.tensor([values], dtype=torch.float64)
        order = [index for part in self.deal(range(total)) for index in part]
        gathered = torch.zeros(total, dtype=torch.float64)
        gathered[order] = self.gather_columns(numbers)[0]
        return gathered.tolist()

    def own_columns(self, total: int) -> slice:
        """Where this process's columns are in a gathered table of `total` dealt items."""
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
        """The largest of the numbers that the processes give."""
        return max(gather_object([number]))

    def of_main(self, value: T) -> T:
        """What the main process gives."""
        return cast("T", gather_object([value])[0]) if self.count > 1 else value

    def wait(self) -> None:
        """Wait until all processes have come here."""
        self.accelerator.wait_for_everyone()

    def autocast(self) -> AbstractContextManager[None]:
        """A context with the mixed precision that `accelerate launch` was told of; none by itself."""
        return self.accelerator.autocast()
