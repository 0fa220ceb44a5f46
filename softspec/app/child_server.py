"""An HTTP server in a child process: started, waited for until it answers, and ended with all that it started.

In: a command and the URL that answers 200 once the server is ready. Knows neither vLLM nor what is served.
"""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import MappingProxyType

from tqdm import tqdm

from softspec.errors import EngineError

# The server is on this machine: a proxy from the environment must not come between.
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def free_port() -> int:
    """A TCP port on which nothing listens now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def child_server(
    command: Sequence[str],
    ready_url: str,
    log: Path,
    environment: Mapping[str, str],
    ready_timeout_s: float = 600,
    stages: Mapping[str, str] = MappingProxyType({}),
) -> Iterator[None]:
    """Run `command` until the block ends, which begins when `ready_url` answers; its output goes to `log`.

    Args:
        stages: of the start, in their order: what the log says when one begins -> what it is. The last one that the
            log tells of is shown on stderr while the server is waited for.
    Raises:
        EngineError: the server ended, or was not ready in time; the message names its log.
    """
    with log.open("w", encoding="utf-8") as output:
        # A session of its own, so that what is left of it at the end can be ended together.
        server = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )
    try:
        _wait_until_ready(server, ready_url, log, ready_timeout_s, stages)
        yield
    finally:
        _stop(server)


def _wait_until_ready(
    server: subprocess.Popen[bytes], url: str, log: Path, timeout_s: float, stages: Mapping[str, str]
) -> None:
    deadline = time.monotonic() + timeout_s
    told = ""
    # disable=None: a bar on a terminal, elsewhere a line for each stage.
    with tqdm(unit="s", bar_format="{desc}: {elapsed}", file=sys.stderr, disable=None) as bar:
        while not _is_ready(url):
            if server.poll() is not None:
                raise EngineError(
                    f"the server ended early, with exit code {server.returncode}{_last_words(log)}: see '{log}'"
                )
            if time.monotonic() > deadline:
                raise EngineError(f"the server was not ready after {timeout_s:.0f} s: see '{log}'")
            if (stage := _stage(log, stages)) != told:
                told = stage
                bar.set_description_str(stage)
                if bar.disable:
                    print(f"softspec: {stage}", file=sys.stderr)
            bar.update()
            time.sleep(1)


def _last_words(log: Path) -> str:
    """What softspec said last, which is why it ended; nothing if it said nothing."""
    said = [line for line in log.read_text("utf-8", "replace").splitlines() if line.startswith("softspec: ")]
    return f" ({said[-1].removeprefix('softspec: ')})" if said else ""


def _stage(log: Path, stages: Mapping[str, str]) -> str:
    text = log.read_text(encoding="utf-8", errors="replace")
    begun = [stage for sign, stage in stages.items() if sign in text]
    return f"starting the server ({begun[-1]})" if begun else "starting the server"


def _is_ready(url: str) -> bool:
    try:
        with _DIRECT.open(url, timeout=60) as reply:
            return bool(reply.status == 200)
    except urllib.error.HTTPError as not_yet:
        not_yet.close()
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        pass  # not listening yet
    return False


def _stop(server: subprocess.Popen[bytes], grace_s: float = 30) -> None:
    """Ask the server to end, and after at most `grace_s` end whatever is left of its session."""
    server.terminate()
    with suppress(subprocess.TimeoutExpired):
        server.wait(grace_s)
    with suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGKILL)
    server.wait()
