"""vLLM's engine arguments, from a command line, and the check that they were tested with ensembles.

In: words of a command line, or the namespace that vLLM's own parser makes of them. Out: its arguments, or an error that
names a flag; then its configuration, or what vLLM has against it.

vLLM 0.32 places: `vllm.engine.arg_utils.AsyncEngineArgs`, `vllm.entrypoints.cli.serve.ServeSubcommand`.
"""

from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from vllm.config import VllmConfig
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.entrypoints.cli.serve import ServeSubcommand
from vllm.exceptions import VLLMError
from vllm.usage.usage_lib import UsageContext
from vllm.utils.argparse_utils import FlexibleArgumentParser

from softspec.engine.options import require_tested, untested_options
from softspec.errors import ConfigError, SoftspecError

# Chooses the defaults (tokens per step) of vLLM's server.
USAGE = UsageContext.OPENAI_API_SERVER


def serve_command(arguments: Sequence[str]) -> tuple[ServeSubcommand, Namespace]:
    """vLLM's own command `serve`, and what its parser makes of its arguments; nothing is checked yet."""
    command = ServeSubcommand()
    parser = FlexibleArgumentParser(prog="softspec")
    command.subparser_init(parser.add_subparsers())
    return command, parser.parse_args([command.name, *arguments])


def engine_parser() -> FlexibleArgumentParser:
    """A parser of every engine flag, and of no other."""
    return AsyncEngineArgs.add_cli_args(FlexibleArgumentParser(prog="softspec"))


def accepted_arguments(
    given: Namespace, allow_untested: bool | None = None, in_use: bool = False
) -> AsyncEngineArgs:
    """The engine arguments that were given, all of them tested with ensembles or left at vLLM's defaults.

    Args:
        in_use: the engine runs already.
    Raises:
        UnsupportedEngineError: some are neither, and `allow_untested` does not say that this is all right.
    """
    found = AsyncEngineArgs.from_cli_args(given)
    # A few of the parser's defaults differ from those of the class.
    defaults = AsyncEngineArgs.from_cli_args(engine_parser().parse_args(["--model", found.model]))
    require_tested(untested_options(found, defaults, in_use), allow_untested)
    return found


def configure(args: AsyncEngineArgs) -> VllmConfig:
    """vLLM's configuration, which reads the base's own but no weights.

    Raises:
        ConfigError: vLLM refuses the arguments.
    """
    with refusals_in_one_line():
        return args.create_engine_config(USAGE)


@contextmanager
def refusals_in_one_line() -> Iterator[None]:
    """What vLLM has against the user's settings becomes one line of ours.

    Raises:
        ConfigError: vLLM refused something.
    """
    try:
        yield
    except SoftspecError:
        raise
    except (ValueError, TypeError, KeyError, NotImplementedError, ImportError, OSError, VLLMError) as error:
        raise ConfigError(f"vLLM refuses these settings: {' '.join(str(error).split())}") from error
