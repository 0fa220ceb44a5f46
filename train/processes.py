"""The processes of one run: one, or several under `torchrun` or `accelerate launch`, which share each step's examples.

In: what one process has. Out: what all of them have. Adapters and optimizer are the same in every process: gradients
are summed before they are used.
"""

import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryFile, mkstemp
from typing import IO, TypeVar, cast

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs, gather_object, parse_flag_from_env
from torch import Tensor, nn

from softspec.errors import ConfigError, UserError

T = TypeVar("T")
PATIENCE = timedelta(hours=12)
"""How long processes wait for one that works for them, as when it tokenises; a dead one is noticed by the launcher."""
NOT_USED = {
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
}
"""Variable of `accelerate launch` -> what it would be told of in vain."""


def is_main_process() -> bool:
    """Whether this process writes files and talks to the user; known before the processes have met."""
    return os.environ.get("RANK", "0") == "0"


def leave_others() -> None:
    """End what connects this process with others of its run, after the last thing that they do together.

    PyTorch's threads for that may abort a process that ends with them.
    """
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


class Processes:
    """The processes of a run, one device each; every method but the properties must be called by all of them."""

    def __init__(self) -> None:
        """Meet the other processes, if there are any.

        Raises:
            ConfigError: `accelerate launch` was asked for what does not happen here.
        """
        for variable, name in NOT_USED.items():
            if parse_flag_from_env(variable):
                raise ConfigError(
                    f"accelerate was told to use {name}, and softspec does not: launch it without; shard_base shares "
                    "a base out among processes"
                )
        # Without a word about CPUs accelerate takes each of several processes there for the only one.
        self.accelerator = Accelerator(
            cpu=not torch.accelerator.is_available(),
            kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE)],
        )

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

    @property
    def mixed_precision(self) -> str:
        """The precision that `accelerate launch` was told to compute in beside the base's own; empty without."""
        asked = str(self.accelerator.mixed_precision)
        return "" if asked == "no" else asked

    @property
    def is_first_of_node(self) -> bool:
        """Whether this process is the one that does what needs to be done once on a machine."""
        return self.accelerator.is_local_main_process

    def file_of_node(self, folder: Path) -> IO[bytes]:
        """A new file that only this node's processes have: it lies in `folder` without a name, and goes with them."""
        folder.mkdir(parents=True, exist_ok=True)
        if self.count == 1:
            return cast("IO[bytes]", TemporaryFile(dir=folder))
        # Opened by all before it loses its name: what a killed run leaves behind is nothing.
        descriptor, name = mkstemp(dir=folder) if self.is_first_of_node else (-1, "")
        names = gather_object([name])
        if not name:  # launchers number a node's processes in a row
            descriptor = os.open(names[self.index - self.accelerator.local_process_index], os.O_RDONLY)
        self.wait()
        if name:
            os.unlink(name)
        return os.fdopen(descriptor, "w+b" if name else "rb")

    def once_a_node(self, act: Callable[[], None]) -> None:
        """Let the first process of each node act while the others wait; its error is everyone's.

        Raises:
            UserError: what some process that acted raised.
        """
        if self.count == 1:
            return act()
        error = None
        if self.is_first_of_node:
            try:
                act()
            except UserError as raised:
                error = raised
        for each in gather_object([error]):
            if each:
                raise each

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
