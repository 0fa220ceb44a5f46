"""A way in a process of its own, where it waits between its turns, so that its peak memory is its own.

In: a way's name and what it needs. Out: a `Worker` to ask. One computes at a time, because the caller asks one at a
time.
"""

import ctypes
import multiprocessing
import os
import resource
import signal
import sys
import tempfile
import traceback
from contextlib import suppress
from dataclasses import asdict
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor
from transformers.utils import logging

from softspec.app.bench.training.named import way_named
from softspec.app.bench.training.settings import BenchSettings, Cell
from softspec.app.bench.training.ways import in_float32
from softspec.errors import WorkerError, WorkerOutOfMemory


class Worker:
    """One way for one cell, in a process of its own; `weight_bytes` is the size of the base's weights.

    The process has a cache folder of its own, which goes with it however it ends.
    """

    def __init__(self, way: str, base: str, weight_bytes: int, cell: Cell, settings: BenchSettings) -> None:
        self._way = way
        spawning = multiprocessing.get_context("spawn")
        self._connection, theirs = spawning.Pipe()
        self._cache = tempfile.TemporaryDirectory(prefix="softspec-bench-")
        arguments = (theirs, self._cache.name, way, base, weight_bytes, cell, settings)
        self._process = spawning.Process(target=_work, args=arguments, daemon=True)
        self._process.start()
        theirs.close()

    @property
    def pid(self) -> int | None:
        """The number of the worker's process."""
        return self._process.pid

    def wait_until_loaded(self) -> None:
        """Wait until the way is ready to take steps.

        Raises:
            WorkerError: the way failed, or its process ended. WorkerOutOfMemory: it needs more memory than there is.
        """
        self._answer()

    def gradients(self) -> dict[str, Tensor]:
        """The way's gradients, (K, ...) by name, on the CPU; errors as `wait_until_loaded`."""
        return self._ask("gradients")

    def take(self, steps: int) -> dict[str, Any]:
        """Time so many steps: what `Timing` has, `peak_bytes`, and `added_bytes`, that without libraries and base."""
        return self._ask("take", steps)

    def close(self) -> None:
        """End the process, whatever it does: by itself if it is waiting; then delete its cache."""
        self._connection.close()
        self._process.join(timeout=5)
        self._process.terminate()
        self._process.join()
        self._cache.cleanup()

    def _ask(self, *question: Any) -> Any:
        with suppress(BrokenPipeError):  # the answer tells what became of it
            self._connection.send(question)
        return self._answer()

    def _answer(self) -> Any:
        try:
            error, content = self._connection.recv()
        except (EOFError, ConnectionResetError) as lost:
            self._process.join()
            if self._process.exitcode == -signal.SIGKILL:
                raise WorkerOutOfMemory(f"{self._way}: killed, most likely because memory ran out") from lost
            raise WorkerError(f"{self._way}: its process ended with {self._process.exitcode}") from lost
        if error is not None:
            raise error(f"{self._way}: {content}")
        return content


class _Measured:
    """A way in its process, where its memory is measured."""

    def __init__(self, way: str, base: str, weight_bytes: int, cell: Cell, settings: BenchSettings) -> None:
        make = way_named(way)
        libraries = 0 if torch.cuda.is_available() else psutil.Process().memory_info().rss
        self._floor_bytes = libraries + weight_bytes
        self._way: Any = make(base, cell, settings)

    def gradients(self) -> dict[str, Tensor]:
        with in_float32(self._way.model):
            found: dict[str, Tensor] = self._way.gradients()
        return found

    def take(self, steps: int) -> dict[str, Any]:
        _reset_peak()
        timing = asdict(self._way.run(steps))
        peak = _peak_bytes()
        return {**timing, "peak_bytes": peak, "added_bytes": peak - self._floor_bytes}


def _work(connection: Connection, cache: str, *wanted: Any) -> None:
    """Make a `_Measured` of what is wanted and let it answer; `cache` is its folder for what softspec keeps."""
    os.environ["SOFTSPEC_CACHE"] = cache
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the caller ends this process
    sys.stdout = sys.stderr  # the other one is for the results
    logging.disable_progress_bar()
    try:
        _limit_memory()
        measured = _Measured(*wanted)
        connection.send((None, None))
        while True:
            method, *arguments = connection.recv()
            _limit_memory()
            answer = getattr(measured, method)(*arguments)
            _return_freed_memory()
            connection.send((None, answer))
    except (EOFError, BrokenPipeError):  # the caller is gone
        return
    except Exception as error:
        if is_out_of_memory(error):
            connection.send((WorkerOutOfMemory, "out of memory"))
            return
        traceback.print_exc()
        connection.send((WorkerError, str(error).partition("\n")[0]))


def _limit_memory() -> None:
    """Limit the process to what is free, so that a way too large fails by itself and no other process is killed."""
    if not torch.cuda.is_available():
        allowed = psutil.Process().memory_info().vms + psutil.virtual_memory().available
        _, most = resource.getrlimit(resource.RLIMIT_AS)
        if most == resource.RLIM_INFINITY or allowed < most:
            resource.setrlimit(resource.RLIMIT_AS, (allowed, most))


def _return_freed_memory() -> None:
    """Give freed memory back to the system: the C library would keep gigabytes that the next way may need."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    else:
        ctypes.CDLL(None).malloc_trim(0)


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether an error, or what it was raised from, says that memory ran out: torch's words for it, or Python's."""
    if error is None:
        return False
    known = isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)
    return known or is_out_of_memory(error.__cause__)


def _reset_peak() -> None:
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")  # proc(5): resets the peak resident set size


def _peak_bytes() -> int:
    """The most memory since the last reset: on a GPU what torch allocated, on CPUs what the process had resident."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
