"""A new API key, and its entry in the key file.

In: a name and a file. Out: the key, which is nowhere else, and the file with one entry more; comments and entries that
were there stay as they were. The file is whole at any moment.
"""

import os
import re
import secrets
from pathlib import Path

from softspec.artefact.yaml_file import in_line
from softspec.artefact.yaml_text import YamlError, parse_yaml
from softspec.errors import ConfigError
from softspec.server.access.keys import key_hash, read_key_file, require_key_name

PREFIX = "sk-softspec-"
"""Begins every key, so that scanners for secrets find one that got lost."""
_BEGINNING = "# Who may ask: 'softspec serve --keys' reads this file, again whenever it changes.\nkeys:\n"
_FIRST_ENTRY = re.compile(r"^keys:[^\n]*\n(?:[ ]*(?:#[^\n]*)?\n)*([ ]+)\S", re.MULTILINE)


def new_key(path: Path, name: str, admin: bool = False) -> str:
    """Make a key and put its hash into the file, which is made if it is not there.

    Raises:
        ConfigError: the name is taken or cannot be, or the file cannot be read, continued or written.
    """
    require_key_name(name)
    path = path.resolve()
    before = None
    if path.exists():
        if name in read_key_file(path):
            raise ConfigError(
                f"the key file {path} has a key '{name}' already: choose another name, or remove it"
            )
        before = path.read_text(encoding="utf-8")
    key = PREFIX + secrets.token_urlsafe(32)
    entry: dict[str, object] = {"hash": key_hash(key), **({"admin": True} if admin else {})}
    _replace(path, _with_entry(before, name, entry, path))
    return key


def _with_entry(before: str | None, name: str, entry: dict[str, object], path: Path) -> str:
    """The file's text with one entry more."""
    text = _BEGINNING if before is None else before if before.endswith("\n") else before + "\n"
    entries = _FIRST_ENTRY.search(text)
    indent = entries[1] if entries else "  "
    lines = [f"{indent * 2}{field}: {str(value).lower()}\n" for field, value in entry.items()]
    # A name such as 1 or true would be no text.
    after = "".join([f'{text}{indent}"{name}":\n', *lines])
    if before is not None and _parsed(after) != _expected(before, name, entry):
        raise ConfigError(
            f"the key file {in_line(str(path))} does not end with the entries of 'keys', one below the other: move "
            "them to its end"
        )
    return after


def _parsed(text: str) -> object:
    try:
        return parse_yaml(text.encode())
    except YamlError:
        return None


def _expected(before: str, name: str, entry: dict[str, object]) -> dict[str, object]:
    content = parse_yaml(before.encode())
    return {**content, "keys": {**content["keys"], name: entry}}


def _replace(path: Path, text: str) -> None:
    """Write the file in one step, for nobody but its owner to read, or for those who may now."""
    fresh = path.with_name(f".{path.name}.new")
    try:
        file = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        raise ConfigError(
            f"{fresh} is there: another 'softspec key new' is writing; remove it if that is not so"
        ) from None
    except OSError as error:
        raise ConfigError(f"cannot write the key file {path}: {error.strerror}") from error
    try:
        with os.fdopen(file, "w", encoding="utf-8") as stream:
            if path.exists():
                now = path.stat()
                os.fchown(file, now.st_uid, now.st_gid)
                os.fchmod(file, now.st_mode & 0o7777)
            stream.write(text)
            stream.flush()
            os.fsync(file)
        fresh.replace(path)
    except OSError as error:
        fresh.unlink(missing_ok=True)
        raise ConfigError(f"cannot write the key file {path}: {error.strerror}") from error
