"""What a server says without `--verbose`: softspec's own lines, errors, and warnings that were not expected.

In: the user's flags and variables. Out: variables by which all of vLLM's processes log as `quiet.json` says. Whoever
uses a flag or variable of vLLM's log gets vLLM's log. Imports neither vllm nor torch.
"""

import logging
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

CONFIG = Path(__file__).with_name("quiet.json")
"""For `logging.config.dictConfig`: of vLLM's processes, and of its HTTP server."""
FLAGS = ("--no-use-tqdm-on-load",)
"""vLLM's flag against its bars."""
_FLAGS_OF_THE_LOG = ("--log-level", "--log-config-file", "--logging-config", "--uvicorn-log-level")
_VARIABLES_OF_THE_LOG = ("VLLM_LOGGING_", "VLLM_CONFIGURE_LOGGING")
_EXPECTED = (
    # softspec itself chose what these are about.
    "Using custom scheduler class",
    "VLLM_CPU_NUM_OF_RESERVED_CPU is less than",
    "Enforce eager set",
    "Inductor compilation was disabled by user settings",
    "vLLM has deprecated support for supporting different tokenizers for different LoRAs",
    # On CPUs, at every start.
    "Triton is not installed",
    "Reset SSM cache type",
    "libtcmalloc is not found",
    "libiomp is not found",
    "OMP_NUM_THREADS=",
    # Where the limit of open files is lower than vLLM wishes; what comes of it is an error.
    "Found ulimit of",
    # softspec traces by itself, and a caller may.
    "Received a request with trace context but tracing is disabled",
    # How vLLM's processes end; that they died is an error of its own.
    "[shutdown]",
)
"""How warnings of vLLM 0.32 begin that nobody can or need do anything about."""
_THE_END = {"EngineDeadError"}
"""The error, by name, of everybody who waits when an engine ends; why it did is an error of its own."""
_PYTHON_WARNINGS = "ignore::FutureWarning,ignore::UserWarning:multiprocessing.resource_tracker"


def is_quiet(verbose: bool, vllm_args: Sequence[str], environment: Mapping[str, str]) -> bool:
    """Whether the user left it to softspec what is logged."""
    flags = {argument.partition("=")[0].partition(".")[0].replace("_", "-") for argument in vllm_args}
    asked = flags.intersection(_FLAGS_OF_THE_LOG) or [
        name for name in environment if name.startswith(_VARIABLES_OF_THE_LOG)
    ]
    return not verbose and not asked


def quiet_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables by which vLLM's processes, and what they use, are quiet; those that the user has set win."""
    theirs = environment.get("PYTHONWARNINGS")
    return {
        "VLLM_LOGGING_LEVEL": "WARNING",
        "VLLM_LOGGING_CONFIG_PATH": str(CONFIG),
        "TORCH_CPP_LOG_LEVEL": environment.get("TORCH_CPP_LOG_LEVEL", "ERROR"),
        # The last that fits holds.
        "PYTHONWARNINGS": f"{_PYTHON_WARNINGS},{theirs}" if theirs else _PYTHON_WARNINGS,
    }


def hide_import_warnings() -> None:
    """Do for this process, which runs already, what PYTHONWARNINGS does for those that it starts."""
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"vllm\.")


class Unexpected(logging.Filter):
    """Lets pass what is no warning that is expected, and no request's stack trace of the end of its engine."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a record is to be seen."""
        if record.levelno <= logging.WARNING:
            return not record.getMessage().startswith(_EXPECTED)
        error = record.exc_info[0] if record.exc_info else None
        return error is None or not _THE_END.intersection(each.__name__ for each in error.__mro__)


class Plain(logging.Formatter):
    """softspec's lines, of one process or another: what is no news has its level before it."""

    def format(self, record: logging.LogRecord) -> str:
        """The text of a record."""
        text = super().format(record)
        return text if record.levelno == logging.INFO else f"softspec: {record.levelname.lower()}: {text}"
