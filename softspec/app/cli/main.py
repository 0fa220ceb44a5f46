"""The command line: `softspec COMMAND`, the table of its commands, and what becomes of errors.

In: arguments. Out: data on stdout, progress and logs on stderr, and an exit code: 0, 2 for what the user can fix (one
clear line), 1 for what they cannot, 128 + signal number when interrupted. Imports a command only to run it, so that
`softspec --help` waits for nothing.
"""

import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any, NamedTuple

from cyclopts import App, CycloptsError, Parameter

from softspec import __version__
from softspec.console import occupy_streams, settle_streams, tell
from softspec.errors import SoftspecError


class Command(NamedTuple):
    """What a command does, and the extra of the distribution that has the packages it needs."""

    what: str
    extra: str | None = None


COMMANDS = {
    "train": Command("Train an ensemble from a YAML file.", extra="train"),
    "select": Command("Choose alpha and the number of members, and train them.", extra="train"),
    "serve": Command("Serve ensembles with an OpenAI-compatible API.", extra="serve-cpu"),
    "alias": Command("Say which ensembles a running server's aliases stand for."),
    "compare": Command("Say how two ensembles of a running server differ.", extra="serve-cpu"),
    "key": Command("Make API keys for a server.", extra="serve-cpu"),
    "score": Command("Score answers in a file: what an ensemble thinks of each.", extra="serve-cpu"),
    "evaluate": Command("Say what an ensemble's numbers are worth, on data with a truth.", extra="evaluate"),
    "calibrate": Command(
        "Fit P(correct) and thresholds with a guarantee on rows with a truth.", extra="evaluate"
    ),
    "baselines": Command("Train and score what an ensemble has to beat.", extra="evaluate"),
    "report": Command("Write what is known of a run into one HTML file.", extra="evaluate"),
    "inspect": Command("Show what an ensemble directory holds."),
    "diagnose": Command("Say whether members can specialise, and what to change if not.", extra="train"),
    "plan": Command("Say what an ensemble needs: memory and time, by arithmetic.", extra="train"),
    "try": Command("Ask the ensemble that travels in the package three questions.", extra="demo"),
    "demo": Command("Train, serve and ask an ensemble on generated contradictory sources.", extra="demo"),
    "bench": Command("Measure on this machine.", extra="bench"),
}
"""Every command is the `app` of the module of its name in this folder."""


def shown_default(value: Any) -> str | None:
    """A default as one would type it; None for what goes without saying."""
    if value is None or value is False or value == ():
        return None
    if isinstance(value, tuple):
        return " ".join("/".join(map(str, part)) if isinstance(part, tuple) else str(part) for part in value)
    return str(value)


app = App(
    name="softspec",
    help="Train alpha-Renyi LoRA ensembles and serve them as one model that knows when it does not know.",
    help_epilogue="'softspec COMMAND --help' has the options of a command, and examples.",
    version=f"softspec {__version__}",
    help_format="plaintext",
    group_parameters="Options",
    default_parameter=Parameter(negative="", show_default=shown_default),
    result_action="return_value",
    exit_on_error=False,
    print_error=False,
)
for place, (name, command) in enumerate(COMMANDS.items()):
    app.command(f"softspec.app.cli.{name}:app", name=name, help=command.what, sort_key=place)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    occupy_streams()
    tokens = list(sys.argv[1:] if arguments is None else arguments)
    with _noting_interrupts() as interrupts:
        try:
            exit_code = _run(tokens)
        except KeyboardInterrupt:
            exit_code = 128 + signal.SIGINT
        except Exception:
            if not interrupts:
                raise
            exit_code = (
                128 + signal.SIGINT
            )  # a library made another error of it, as when it was being imported
    settle_streams()
    return exit_code


def _run(tokens: Sequence[str]) -> int:
    try:
        app(tokens)
    except CycloptsError as mistake:
        return _end(_in_one_line(mistake), 2)
    except SoftspecError as error:
        return _end(str(error), error.exit_code)
    except ModuleNotFoundError as missing:
        package = (missing.name or "softspec").partition(".")[0]
        if package == "softspec":
            raise
        return _end(_how_to_install(package, app.parse_commands(tokens)[0]), 2)
    except BrokenPipeError:
        return 128 + signal.SIGPIPE  # whoever read our output has left, so there is nobody to tell
    except OSError as error:
        return _end(_of_the_system(error), 2)
    return 0


@contextmanager
def _noting_interrupts() -> Iterator[list[int]]:
    """The Ctrl-C that arrived here so far; each is a `KeyboardInterrupt`, as ever."""
    received: list[int] = []
    before = signal.getsignal(signal.SIGINT)
    is_main_thread = threading.current_thread() is threading.main_thread()
    if not is_main_thread or before not in (signal.default_int_handler, signal.SIG_DFL):
        yield received
        return

    def note(number: int, frame: FrameType | None) -> None:
        received.append(number)
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, note)
    try:
        yield received
    finally:
        signal.signal(signal.SIGINT, before)


def _end(message: str, exit_code: int) -> int:
    tell(message)
    return exit_code


def _of_the_system(error: OSError) -> str:
    """What the operating system refused, in one line."""
    if error.strerror is None:
        return " ".join(str(error).split()) or type(error).__name__
    return f"'{error.filename}': {error.strerror}" if error.filename else error.strerror


def _in_one_line(mistake: CycloptsError) -> str:
    mistake.verbose = False
    chain = mistake.command_chain or ()
    message = " ".join(str(mistake).split()).removeprefix(f'Command "{" ".join(chain)}" parameter ')
    return f"{message} See '{' '.join(('softspec', *chain))} --help'."


def _how_to_install(package: str, command: Sequence[str]) -> str:
    extra = COMMANDS["serve" if package == "vllm" else command[0]].extra
    install = "pip install softspec" if extra is None else f"pip install 'softspec[{extra}]'"
    if extra == "serve-cpu":
        install += ", or 'softspec[serve-gpu]' for GPUs"
    return f"'softspec {' '.join(command)}' needs packages that are not installed ({package}): {install}"


if __name__ == "__main__":
    sys.exit(main())
