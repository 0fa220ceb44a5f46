"""The shell command that starts vLLM's own server with our plugin, as `softspec serve` would start it.

In: what `softspec serve` was given. Out: variables and `vllm serve` with its flags, to be pasted into a shell.
"""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from softspec.server.ops.launch import checked_arguments, server_environment
from softspec.server.ops.settings import CARRIED, Settings, told_by_variables


def vllm_command(
    settings: Settings,
    base: str | None,
    vllm_args: Sequence[str],
    drain_timeout_s: int,
    environment: Mapping[str, str],
    server_config: Path | None = None,
) -> str:
    """A command for a POSIX shell, one variable or flag a line; nothing is started.

    Raises:
        UserError: as `softspec serve`, of what can be known before it starts.
    """
    model, *flags = checked_arguments(settings, base, vllm_args, drain_timeout_s)
    variables = server_environment(settings, environment)
    del variables[CARRIED]
    variables = told_by_variables(settings, environment, server_config) | variables
    assigned = [f"{name}={shlex.quote(value)}" for name, value in variables.items()]
    return " \\\n  ".join([*assigned, f"vllm serve {shlex.quote(model)}", *_lines(flags)])


def _lines(flags: Sequence[str]) -> list[str]:
    """Every flag with its values."""
    lines: list[list[str]] = []
    for word in flags:
        if word.startswith("-") or not lines:
            lines.append([])
        lines[-1].append(word)
    return [shlex.join(line) for line in lines]
