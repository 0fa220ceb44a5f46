"""One log for the whole server: what softspec says goes where vLLM's lines go, in their form.

In and out: the loggers named `softspec` and `vllm`.
"""

import logging


def share_log() -> None:
    """Give softspec's log vLLM's handlers and level; the root logger hears of it if it hears of vLLM's."""
    ours, theirs = logging.getLogger("softspec"), logging.getLogger("vllm")
    ours.handlers, ours.propagate = theirs.handlers, theirs.propagate
    ours.setLevel(theirs.level)
