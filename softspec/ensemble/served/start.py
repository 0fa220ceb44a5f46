"""Start the engine that serves, from any script: its arguments, its environment, its process.

In: an ensemble directory, its base, and the user's flags for vLLM. Out: a `ServedBackend`. vLLM is imported here, late:
its environment must be complete by then.
"""

import atexit
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from softspec.console import tell
from softspec.ensemble.served.backend import ServedBackend
from softspec.ensemble.served.loop import LoopThread
from softspec.server.ops.launch import server_environment
from softspec.server.ops.settings import Settings

if TYPE_CHECKING:
    from softspec.engine.start.local import LocalEngine

DEFAULTS = {
    "VLLM_LOGGING_STREAM": "ext://sys.stderr",
    "VLLM_LOGGING_LEVEL": "WARNING",
    # A process with threads, as this one is, cannot be forked safely.
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
}
"""What vLLM finds here unless the user chose otherwise."""


def start_engine(ensemble_dir: Path, arguments: Sequence[str]) -> ServedBackend:
    """Start an engine for one ensemble.

    Args:
        arguments: of `server_arguments`: the base, then flags.
    Raises:
        UserError: vLLM refuses a flag, or the ensemble does not fit.
        EngineError: the engine does not start.
    """
    prepare_environment(ensemble_dir)
    from softspec.engine.front.ensemble import load_ensembles
    from softspec.engine.start.local import open_engine

    ensembles = load_ensembles([ensemble_dir])
    loop, opened = LoopThread(), open_engine(arguments, ensembles)
    try:
        with _main_module_unseen():
            engine = loop.wait_for(_entered(opened))
    except BaseException:
        loop.close()
        raise
    return ServedBackend(engine, ensembles[0].name, loop, _closing(loop, opened))


def prepare_environment(ensemble_dir: Path) -> None:
    """Set the variables that vLLM's processes must see, in this process; the user's own win.

    Where vLLM has been imported before, with others, one line says so.
    """
    before = dict(os.environ)
    wanted = {**DEFAULTS, **before}
    wanted |= server_environment(Settings((ensemble_dir,)), wanted)
    late = sorted(name for name in wanted.keys() - before.keys() if name.startswith("VLLM_"))
    if late and "vllm" in sys.modules:
        tell(
            f"vllm was imported before softspec.load could set {', '.join(late)}: what it has read already stays as it "
            "is; load the ensemble first"
        )
    os.environ.update(wanted)


def _closing(loop: LoopThread, opened: AbstractAsyncContextManager["LocalEngine"]) -> Callable[[], None]:
    """What ends an engine and its loop, once; at the latest when the interpreter exits."""

    def close() -> None:
        atexit.unregister(close)
        try:
            loop.wait_for(_left(opened))
        finally:
            loop.close()

    atexit.register(close)
    return close


async def _entered(opened: AbstractAsyncContextManager["LocalEngine"]) -> "LocalEngine":
    return await opened.__aenter__()


async def _left(opened: AbstractAsyncContextManager["LocalEngine"]) -> None:
    await opened.__aexit__(None, None, None)


@contextmanager
def _main_module_unseen() -> Iterator[None]:
    """Processes that are spawned here do not run the user's script again, so it needs no guard against that."""
    main = sys.modules["__main__"]
    hidden = {name: getattr(main, name) for name in ("__file__", "__spec__") if hasattr(main, name)}
    for name in hidden:
        setattr(main, name, None)
    try:
        yield
    finally:
        for name, value in hidden.items():
            setattr(main, name, value)
