"""Files of API keys for tests: each key is its name behind `sk-`.

In: names with what they may do. Out: the file.
"""

from pathlib import Path
from typing import Any

import yaml

from softspec.server.access.keys import key_hash


def secret(name: str) -> str:
    """The key of this name."""
    return f"sk-{name}"


def key_file(folder: Path, **keys: dict[str, Any]) -> Path:
    """A file with these keys, over one that was there."""
    path = folder / "keys.yaml"
    path.touch(mode=0o600)
    entries = {name: {"hash": key_hash(secret(name)), **fields} for name, fields in keys.items()}
    path.write_text(yaml.safe_dump({"keys": entries}))
    return path
