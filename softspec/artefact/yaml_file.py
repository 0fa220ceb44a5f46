"""A configuration file: one YAML mapping.

In: a path. Out: its keys and values, and where a path in it leads, or one line that says what is wrong. Knows no keys.
"""

from pathlib import Path
from typing import Any

from softspec.artefact.yaml_text import YamlError, parse_yaml
from softspec.errors import ConfigError


def read_mapping(path: Path, example: str) -> dict[str, Any]:
    """The keys and values of a YAML file; `example` shows a key that it may have.

    Raises:
        ConfigError: no such file, no YAML, or no mapping.
    """
    source = in_line(str(path))
    try:
        content = parse_yaml(path.read_bytes())
    except (OSError, ValueError) as error:
        if isinstance(error, YamlError):
            raise ConfigError(f"{source}: not YAML as expected: {error}") from error
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"cannot read '{source}': {reason}; expected a YAML file") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{source}: found {_kind(content)}, expected keys such as '{example}'")
    return content


def absolute(folder: Path, text: str) -> Path:
    """The absolute path of a text relative to `folder`; `~` is the home of the user.

    Raises:
        ConfigError: no path can be called so.
    """
    try:
        path = (folder / Path(text).expanduser()).resolve()
        path.exists()
    except (OSError, RuntimeError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"{text[:80]!r} cannot be a path: {reason}; expected a file or folder") from error
    return path


def in_line(text: str) -> str:
    """Text that fits into one line of a message."""
    return text if text.isprintable() else ascii(text)[1:-1]


def _kind(value: Any) -> str:
    kinds = {list: "a list", str: "text", type(None): "nothing"}
    return kinds.get(type(value), f"'{value}'")
