"""One log for the whole server: what softspec says goes where vLLM's lines go, in their form.

In and out: the loggers named `softspec` and `vllm`. A quiet server has a form of its own, which both know already.
"""

import logging
import os

from softspec.engine.start.quiet import CONFIG


def share_log() -> None:
    """Give softspec's log vLLM's handlers and level; the root logger hears of it if it hears of vLLM's."""
    if os.environ.get("VLLM_LOGGING_CONFIG_PATH") == str(CONFIG):
        return
    ours, theirs = logging.getLogger("softspec"), logging.getLogger("vllm")
    ours.handlers, ours.propagate = theirs.handlers, theirs.propagate
    ours.setLevel(theirs.level)
