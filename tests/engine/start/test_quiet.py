"""A server is quiet unless it is told otherwise; errors and what nobody expected are heard all the same."""

import logging
import os
import subprocess
import sys

import pytest

from softspec.engine.start.quiet import Plain, Unexpected, is_quiet, quiet_environment


class EngineDeadError(Exception):
    """Named as vLLM's."""


class OfTheEngine(EngineDeadError):
    """Of its kind."""


@pytest.mark.parametrize(
    ("verbose", "flags", "variables", "expected"),
    [
        (False, ["--port", "8000"], {"VLLM_CPU_KVCACHE_SPACE": "4"}, True),
        (True, [], {}, False),
        (False, ["--log-level", "DEBUG"], {}, False),
        (False, ["--log_level=DEBUG"], {}, False),
        (False, ["--logging-config.formatter=json"], {}, False),
        (False, ["--log-config-file", "log.json"], {}, False),
        (False, ["--uvicorn-log-level", "info"], {}, False),
        (False, [], {"VLLM_LOGGING_LEVEL": "INFO"}, False),
        (False, [], {"VLLM_LOGGING_CONFIG_PATH": "log.json"}, False),
        (False, [], {"VLLM_CONFIGURE_LOGGING": "0"}, False),
    ],
)
def test_whoever_chooses_what_vllm_logs_gets_it(
    verbose: bool, flags: list[str], variables: dict[str, str], expected: bool
) -> None:
    assert is_quiet(verbose, flags, variables) is expected


def test_filters_of_the_user_win_over_ours() -> None:
    found = quiet_environment({"PYTHONWARNINGS": "error", "TORCH_CPP_LOG_LEVEL": "INFO"})

    assert found["PYTHONWARNINGS"].endswith(",error")
    assert found["TORCH_CPP_LOG_LEVEL"] == "INFO"


def record(level: int, message: str, error: BaseException | None = None) -> logging.LogRecord:
    told = (type(error), error, None) if error else None
    return logging.LogRecord("vllm.any", level, __file__, 1, message, (), told)


@pytest.mark.parametrize(
    ("said", "is_heard"),
    [
        (record(logging.WARNING, "Using custom scheduler class softspec.x"), False),
        (record(logging.WARNING, "[shutdown] Process manager: force killing"), False),
        (record(logging.WARNING, "Your answers will be wrong"), True),
        (record(logging.ERROR, "[shutdown] this failed"), True),
        (record(logging.ERROR, "EngineCore failed to start.", ValueError("no room")), True),
        (record(logging.ERROR, "Error in a stream.", EngineDeadError()), False),
        (record(logging.ERROR, "Error in a stream.", OfTheEngine()), False),
    ],
    ids=lambda value: value.getMessage() if isinstance(value, logging.LogRecord) else "",
)
def test_only_what_was_expected_is_not_heard(said: logging.LogRecord, is_heard: bool) -> None:
    assert Unexpected().filter(said) is is_heard


def test_lines_of_softspec_stand_alone_and_name_what_is_no_news() -> None:
    assert Plain().format(record(logging.INFO, "softspec is ready")) == "softspec is ready"
    assert Plain().format(record(logging.WARNING, "no room")) == "softspec: warning: no room"


SPEAKING = """
import logging
from argparse import Namespace
from vllm.logger import configure_logging_from_args

configure_logging_from_args(Namespace())
for name in ("softspec", "uvicorn", "vllm"):
    logging.getLogger(f"{name}.x").info("news of %s", name)
    logging.getLogger(f"{name}.x").warning("a warning of %s", name)
"""


@pytest.mark.vllm
def test_a_process_of_vllm_tells_warnings_and_softspecs_news() -> None:
    loud = {name: value for name, value in os.environ.items() if not name.startswith("VLLM_")}

    done = subprocess.run(
        [sys.executable, "-c", SPEAKING],
        env={**loud, **quiet_environment(loud)},
        capture_output=True,
        text=True,
        check=True,
    )

    *plain, of_uvicorn, of_vllm = done.stderr.splitlines()
    assert plain == ["news of softspec", "softspec: warning: a warning of softspec"]
    assert of_uvicorn.endswith("] a warning of uvicorn")
    assert of_vllm.endswith("] a warning of vllm")
    assert done.stdout == ""
