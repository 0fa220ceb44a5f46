"""Output that nobody reads is lost without an error."""

import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tqdm import tqdm

from softspec.console import Unbroken, tell, tell_at_once, unbroken_output

ROOT = Path(__file__).parents[1]


class Broken(io.StringIO):
    """A stream behind which nobody is left."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self._error = error

    def write(self, text: str) -> int:
        raise self._error

    def flush(self) -> None:
        raise self._error


def closed() -> io.StringIO:
    """A stream that somebody has closed."""
    stream = io.StringIO()
    stream.close()
    return stream


STREAMS: dict[str, Any] = {
    "pipe": Broken(BrokenPipeError(32, "Broken pipe")),
    "terminal": Broken(OSError(5, "Input/output error")),
    "disk": Broken(OSError(28, "No space left on device")),
    "closed": closed(),
    "none": None,
}


@pytest.mark.parametrize("stream", STREAMS.values(), ids=list(STREAMS))
def test_nothing_that_is_told_raises(stream: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(sys, "stdout", stream)

    tell("a line")
    tell_at_once("a line")
    with unbroken_output():
        print("a line")
        print("a line", file=sys.stderr, flush=True)
        for _ in tqdm(range(3), disable=False, mininterval=0):
            tqdm.write("a line", file=sys.stderr)

    assert sys.stderr is stream


def test_what_somebody_reads_arrives() -> None:
    stream = io.StringIO()

    print("a line", file=Unbroken(stream))

    assert stream.getvalue() == "a line\n"


PROGRAM = """\
import os
from softspec.console import occupy_streams, settle_streams
occupy_streams()
with open({path!r}, "w") as file:
    os.write(1, b"not for the file")
    os.write(2, b"not for the file")
    file.write("for the file")
settle_streams()
"""


def test_a_process_without_streams_does_not_write_into_its_files(tmp_path: Path) -> None:
    program = PROGRAM.format(path=str(tmp_path / "file"))

    subprocess.run(
        ["bash", "-c", 'exec "$0" -c "$1" <&- >&- 2>&-', sys.executable, program], cwd=ROOT, check=True
    )

    assert (tmp_path / "file").read_text() == "for the file"


def test_a_reader_who_left_costs_no_exit_code() -> None:
    """Python itself would end with 120."""
    program = """\
from softspec.console import settle_streams, unbroken_output
with unbroken_output():
    print("x" * 100)
settle_streams()
"""
    reading, writing = os.pipe()
    os.close(reading)

    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, stdout=writing, stderr=subprocess.PIPE, check=False
    )
    os.close(writing)

    assert (done.returncode, done.stderr) == (0, b"")
