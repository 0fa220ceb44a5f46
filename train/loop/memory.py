"""What to do when memory runs out: the same advice wherever it happens, in a step, an evaluation or a pass over data.

In: whatever may need much memory. Out: one line that says which settings to lower. Frees nothing.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from softspec.errors import TrainingError
from softspec.train.config import TrainConfig

WORDS = ("out of memory", "can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED")
"""What torch says in errors that have no class of their own: of a GPU, of a CPU, of a library."""


@contextmanager
def advice_on_memory(config: TrainConfig, doing: str = "") -> Iterator[None]:
    """Say what to lower if memory runs out in this context; `doing` is put before it, if given.

    Raises:
        TrainingError: memory ran out.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise TrainingError(
            f"{doing}{': ' if doing else ''}out of memory; lower micro_batch_size, which is {config.micro_batch_size} "
            f"(and raise gradient_accumulation_steps as much), or max_length, which is {config.max_length}"
        ) from error


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error says that memory ran out: torch's words for it, or Python's."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in WORDS)
