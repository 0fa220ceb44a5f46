"""Telling the user: output that never ends what it tells of, whoever has stopped reading.

In: lines for stderr, or the process's streams. Out: the same, as long as somebody is there. Knows nothing of what runs.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO, cast


class Unbroken:
    """A text stream that loses what nobody reads instead of raising: closed pipes, dead terminals, no stream at all."""

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write the text if somebody is there; returns its length."""
        with suppress(OSError, ValueError, AttributeError):
            self._stream.write(text)  # type: ignore[union-attr]
        return len(text)

    def flush(self) -> None:
        """Send what is buffered if somebody is there."""
        with suppress(OSError, ValueError, AttributeError):
            self._stream.flush()  # type: ignore[union-attr]

    def isatty(self) -> bool:
        """Whether somebody sits before a terminal."""
        try:
            return self._stream is not None and self._stream.isatty()
        except (OSError, ValueError):
            return False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def unbroken_stderr() -> TextIO:
    """The present stderr, which does not raise."""
    return cast("TextIO", sys.stderr if isinstance(sys.stderr, Unbroken) else Unbroken(sys.stderr))


@contextmanager
def unbroken_output() -> Iterator[None]:
    """Nothing that is printed here, by whomever, raises."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (cast("TextIO", Unbroken(stream)) for stream in before)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


def tell(line: str) -> None:
    """One line on stderr, from softspec."""
    print(f"softspec: {line}", file=unbroken_stderr(), flush=True)


def tell_at_once(line: str) -> None:
    """One line on stderr from a signal handler, which may have come in the midst of another line."""
    try:
        print(f"\nsoftspec: {line}", file=sys.stderr, flush=True)
    except RuntimeError:  # the stream is being written to at this moment
        with suppress(OSError):
            os.write(2, f"\nsoftspec: {line}\n".encode())
    except (OSError, ValueError, AttributeError):
        return


def occupy_streams() -> None:
    """Open what the process was started without, or the next file would become its stdout or stderr."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)


def settle_streams() -> None:
    """Send what is buffered; what nobody reads any more is dropped, or Python would complain of it when it exits."""
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except (OSError, ValueError):
            with suppress(OSError, ValueError):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, stream.fileno())
                os.close(nowhere)
