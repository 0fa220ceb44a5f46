"""When a run's state is saved: as asked for, and before an error that would cost its steps.

In: a `Training` and how many steps it has had. Out: a checkpoint in its folder. Decides nothing else.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress

from softspec.console import tell
from softspec.errors import DivergedError, StorageError
from softspec.train.loop.checkpoint import save_checkpoint
from softspec.train.loop.folder import RunFolder
from softspec.train.loop.state import Training


@contextmanager
def saved_on_error(training: Training, run: RunFolder, done: int) -> Iterator[None]:
    """Whatever goes wrong here does not cost the steps so far: they are saved, if they are whole, before it goes on."""
    before = _versions(training)
    try:
        yield
    except DivergedError:
        raise  # it would diverge again
    except Exception:
        is_whole = done > 0 and training.processes.is_main and _versions(training) == before
        if is_whole:
            with suppress(StorageError):  # what went wrong first is what is told
                save_checkpoint(run, done, training.state_dict(), training.config, training.survey.digest)
                tell(f"the {done} steps so far are in '{run.checkpoint}'; --resume goes on from there")
        raise


def _versions(training: Training) -> list[int]:
    """PyTorch's count of the changes of each weight."""
    return [weight._version for weight in training.members.parameters()]


def save(training: Training, run: RunFolder, done: int) -> None:
    """Write a checkpoint after `done` steps; returns once it is there."""
    if training.processes.is_main:
        save_checkpoint(run, done, training.state_dict(), training.config, training.survey.digest)
    training.processes.wait()
