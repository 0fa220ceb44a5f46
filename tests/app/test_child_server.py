"""A child server: waited for with words, and gone afterwards."""

import os
import sys
from pathlib import Path

import pytest

from softspec.app.child_server import child_server, free_port
from softspec.errors import EngineError

# Answers 503 twice, and tells its log of a new stage in between.
SERVER = """
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer

class Handler(BaseHTTPRequestHandler):
    asked = 0

    def do_GET(self):
        Handler.asked += 1
        self.send_response(200 if Handler.asked > 2 else 503)
        self.end_headers()
        print("now loading", flush=True)

    def log_message(self, *_): pass

HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


def test_the_stage_of_the_start_is_told_in_a_line_each_where_there_is_no_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    port, log = free_port(), tmp_path / "log"
    stages = {"": "imports", "now loading": "weights", "never said": "end"}
    command = [sys.executable, "-c", SERVER, str(port)]

    with child_server(command, f"http://127.0.0.1:{port}/", log, os.environ, 60, stages):
        told = capsys.readouterr().err.splitlines()

    assert told == ["softspec: starting the server (imports)", "softspec: starting the server (weights)"]


def test_server_that_ends_early_is_quoted(tmp_path: Path) -> None:
    program = "print('much'); print('softspec: the base is another'); print('more'); raise SystemExit(2)"

    complaint = r"with exit code 2 \(the base is another\): see '.*/log'"
    with (
        pytest.raises(EngineError, match=complaint),
        child_server(
            [sys.executable, "-c", program], "http://127.0.0.1:1/", tmp_path / "log", os.environ, 60
        ),
    ):
        pass
