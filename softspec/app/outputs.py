"""Files that a command will write: whether they may be, before anything is computed."""

from collections.abc import Iterable
from pathlib import Path

from softspec.errors import ConfigError


def check_output(
    path: Path | None, inputs: Iterable[Path] = (), flag: str = "--json", overwrite: bool = True
) -> None:
    """Refuse what cannot be written, or may not be replaced; None is no file.

    Args:
        inputs: files that are read.

    Raises:
        ConfigError: there is no directory for it, it is no file or one of the inputs, or it is there already.
    """
    if path is None:
        return
    if not path.absolute().parent.is_dir():
        raise ConfigError(f"{flag} is '{path}' but there is no directory '{path.parent}': make it first")
    if path.resolve() in {each.resolve() for each in inputs} or (path.exists() and not path.is_file()):
        raise ConfigError(f"{flag} is '{path}', which may not be replaced: name another file")
    if path.exists() and not overwrite:
        raise ConfigError(
            f"{flag} is '{path}', which is there already: name another file, or give --overwrite"
        )
