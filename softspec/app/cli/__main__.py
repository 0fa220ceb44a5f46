"""The command line as a process: `softspec`, and `python -m softspec.app.cli` for launchers that want a module."""

import signal
import sys


def start() -> int:
    """Run the command that the process was started with; returns its exit code."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(
            signal.SIGINT, signal.SIG_DFL
        )  # or Ctrl-C would be a traceback until the imports are done

    from softspec.app.cli.main import main

    return main()


if __name__ == "__main__":
    sys.exit(start())
