"""Other people's programs that tests of `deploy/` run, and where they lie.

Out: paths, or None where a program is not installed. `make test` installs them all.
"""

import shutil
import sys
from pathlib import Path

_ENVIRONMENT = Path(sys.prefix)


def _program(name: str, *folders: Path) -> str | None:
    """A program in one of these folders, else anywhere."""
    near = [str(folder / name) for folder in folders if (folder / name).is_file()]
    return near[0] if near else shutil.which(name)


HADOLINT = _program("hadolint", _ENVIRONMENT / "bin")
PROMETHEUS = _program("prometheus", _ENVIRONMENT / "prometheus" / "usr" / "bin")
PROMTOOL = _program("promtool", _ENVIRONMENT / "prometheus" / "usr" / "bin")
