"""vLLM's HTTP app over an engine of this process, without a socket: for whoever has an HTTP server already.

In: the arguments after `vllm serve`, the ensembles that the engine must be fit for, and how to leave. Out: the ASGI
app, ready for its lifespan; the engine ends with the block. What is served over HTTP is the plugin's.

vLLM 0.32 places: `vllm.entrypoints.launchers.app.build_app`,
`vllm.entrypoints.launchers.api_server.app_state.init_app_state`. vLLM and softspec tell a server that its engine has
died by setting `should_exit` of uvicorn's server, which the app's state has; here that is a stand-in.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from types import SimpleNamespace

import vllm
from starlette.applications import Starlette
from vllm.entrypoints.launchers.api_server.app_state import init_app_state
from vllm.entrypoints.launchers.app import build_app
from vllm.entrypoints.serve.utils.api_utils import cli_env_setup
from vllm.logger import configure_logging_from_args

from softspec.engine.requirements import LoadedEnsemble, require_engine
from softspec.engine.start.arguments import accepted_arguments, configure
from softspec.engine.start.log import share_log
from softspec.engine.start.serve import parse, start_engine

LAST_WORDS_S = 1
"""How long answers that tell of the death of the engine may take to leave, before the process does."""


class StandIn:
    """In place of uvicorn's server: once told to exit, it has the process leave."""

    def __init__(self, leave: Callable[[], None]) -> None:
        self.config = SimpleNamespace(timeout_graceful_shutdown=None)
        self.force_exit = False
        self._leave = leave
        self._is_told = False

    @property
    def should_exit(self) -> bool:
        """Whether the server ends."""
        return self._is_told

    @should_exit.setter
    def should_exit(self, value: bool) -> None:
        if value and not self._is_told:
            self._is_told = True
            asyncio.get_running_loop().call_later(LAST_WORDS_S, self._leave)


@asynccontextmanager
async def mounted_app(
    arguments: Sequence[str],
    ensembles: Sequence[LoadedEnsemble],
    allow_untested: bool,
    leave: Callable[[], None],
) -> AsyncIterator[Starlette]:
    """Start an engine and build its app; the environment must be complete by now. Blocks the loop while weights load.

    Args:
        leave: ends this process; called soon after the engine has died.
    Raises:
        UserError: a flag, the base or an ensemble is wrong; said before weights are read where that can be.
        UnsupportedEngineError: an option that was not tested with ensembles.
        EngineError: the engine did not start.
    """
    cli_env_setup()
    args = parse(arguments)
    configure_logging_from_args(args)
    share_log()
    engine_args = accepted_arguments(args, allow_untested)
    config = configure(engine_args)
    require_engine(vllm.__version__, config, ensembles)
    engine = start_engine(config, engine_args)
    try:
        await engine.reset_mm_cache()
        tasks = await engine.get_supported_tasks()
        app = build_app(args, tasks, engine.model_config)
        app.state.server = StandIn(leave)
        await init_app_state(engine, app.state, args, tasks)
        yield app
    finally:
        engine.shutdown(timeout=0)
