"""Where softspec keeps what can be made again: one folder of the user, which the environment may move.

In: a name. Out: a path. Makes no folder.
"""

import os
from pathlib import Path


def cache_folder(name: str) -> Path:
    """The folder `name` in `$SOFTSPEC_CACHE`, else in `~/.cache/softspec`."""
    root = os.environ.get("SOFTSPEC_CACHE")
    return (Path(root) if root else Path.home() / ".cache" / "softspec") / name
