"""Where things lie that a configuration names: files and folders here, or repositories of the hub.

In: the text of a setting and the folder to which it is relative. Out: an absolute path, or a hub id unchanged. Reads no
data.
"""

import re
from pathlib import Path

from softspec.artefact.yaml_file import absolute
from softspec.errors import ConfigError

DATA_ENDINGS = (
    *(".jsonl", ".ndjson", ".json", ".parquet", ".csv", ".tsv", ".txt", ".arrow"),
    *(".gz", ".bz2", ".xz", ".zst", ".zip"),
)
"""Endings of files of data, which no data set of the hub has."""


def is_hub_id(data: str) -> bool:
    """Whether data that are no file here may be the hub's: `owner/name` without the ending of a file of data."""
    is_id = re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", data, re.ASCII) is not None
    return is_id and not data.lower().endswith(DATA_ENDINGS)


def place_of_data(folder: Path, data: str) -> str:
    """An absolute path; of data that are not here, a hub id unchanged."""
    path = absolute(folder, data)
    return data if is_hub_id(data) and not path.exists() else str(path)


def place_of_output(folder: Path, output: str) -> Path:
    """An absolute path that has a name.

    Raises:
        ConfigError: it is the root of the file system.
    """
    path = absolute(folder, output)
    if not path.name:
        raise ConfigError(
            f"'{output}' is the root of the file system; expected a folder of the ensemble's own"
        )
    return path


def place_of_base(folder: Path, base_model: str) -> str:
    """An absolute directory where one is, else the hub id unchanged.

    Raises:
        ConfigError: neither a checkpoint directory nor what may be a hub id.
    """
    path = absolute(folder, base_model)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ConfigError(f"'{path}' has no config.json; expected a checkpoint")
        return str(path)
    if base_model.startswith((".", "/", "~")) or base_model.count("/") > 1:
        raise ConfigError(f"'{path}' does not exist; expected a directory or a hub id")
    if path.exists():
        raise ConfigError(f"'{path}' is a file; expected a checkpoint directory or a hub id")
    return base_model
