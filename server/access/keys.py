"""The file of API keys: a name for each key, its hash, and what it may do.

In: a YAML file. Out: keys by name, checked as far as the file alone allows. No key itself is in it: `key_hash` of what
a caller presents is compared with what the file has. Knows no HTTP.
"""

import hashlib
import re
import stat
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from softspec.artefact.validation import as_key, first_problem, unknown_key
from softspec.artefact.yaml_file import in_line, read_mapping
from softspec.errors import ConfigError
from softspec.server.policy.policy import Action, Policy

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
HASH = "sha256:"
_HASHED = re.compile(rf"{HASH}[0-9a-f]{{64}}")
_STRICT = ConfigDict(extra="forbid", strict=True, frozen=True)
Patterns = Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(strict=False)]
Actions = Annotated[tuple[Action, ...], Field(strict=False)]
Count = Annotated[int, Field(ge=1)]


class Key(BaseModel):
    """One key of the file; where a field is left out, nothing is forbidden and nothing counted."""

    model_config = _STRICT

    hash: str = Field(description="`sha256:` and the SHA-256 of the key, in hexadecimal.")
    models: Patterns | None = Field(
        default=None,
        description="Names of models, with `*`, that it may ask: `my` is the ensemble alone, `my/*` its members.",
    )
    actions: Actions | None = Field(
        default=None,
        description="What a policy may do on its requests: `answer`, `abstain`, `route`; an ensemble without a policy "
        "answers.",
    )
    paths: Patterns | None = Field(
        default=None, description="Routes, with `*`, that it may use, such as `/v1/chat/*`."
    )
    admin: bool = Field(
        default=False,
        description="Whether it may load and unload ensembles, change aliases, and use every other route there is.",
    )
    requests_per_minute: Count | None = Field(
        default=None, description="Requests that begin in a minute, refused ones included."
    )
    tokens_per_minute: Count | None = Field(
        default=None,
        description="Tokens of prompts and answers in a minute, counted when a request has ended.",
    )
    concurrent_requests: Count | None = Field(
        default=None, description="Requests that are answered at the same time, in each replica."
    )

    @model_validator(mode="after")
    def _may_do_everything(self) -> "Key":
        for field in ("models", "actions", "paths"):
            if self.admin and getattr(self, field) is not None:
                raise ValueError(f"an admin key may do everything: remove {field}, or admin")
        return self

    def may_ask(self, model: str) -> bool:
        """Whether it may ask the model of this name."""
        return _matches(self.models, model)

    def may_use(self, path: str) -> bool:
        """Whether it may use the route of this path."""
        return _matches(self.paths, path)

    def may_follow(self, policy: Policy) -> bool:
        """Whether a policy may decide on its requests."""
        if self.actions is None:
            return True
        done = {policy.action}
        if policy.action == "route" and policy.on_failure == "answer":
            done.add("answer")
        return done <= set(self.actions)


def read_key_file(path: Path) -> dict[str, Key]:
    """The keys of a file by their names.

    Raises:
        ConfigError: no such file, others may read it, no YAML mapping, an unknown field, or a value that cannot be.
    """
    source = in_line(str(path))
    _refuse_open_file(path, source)
    content = read_mapping(path, example="keys: {NAME: {hash: 'sha256:...'}}")
    try:
        for key in content:
            if key != "keys":
                raise ConfigError(f"{as_key(key)}: {unknown_key(key, ('keys',))}")
        entries = content.get("keys")
        if not isinstance(entries, dict):
            raise ConfigError("keys: missing: expected names with hashes, as 'softspec key new' writes them")
        return _checked({name: _key(name, fields) for name, fields in entries.items()})
    except ConfigError as error:
        raise ConfigError(f"the key file {source}: {error}") from error


def require_key_name(name: str) -> None:
    """Raise unless a key may have this name."""
    if not NAME.fullmatch(name):
        raise ConfigError(
            f"a key is named '{as_key(name)}': expected up to 64 letters, digits, '.', '_' and '-', the first of them "
            "a letter or a digit"
        )


def key_hash(key: str) -> str:
    """The hash of a key as the file has it.

    SHA-256 alone, where passwords need a slow hash: a key has 256 random bits, which nobody can try.
    """
    return HASH + hashlib.sha256(key.encode()).hexdigest()


def _key(name: str, fields: Any) -> Key:
    require_key_name(name)
    place = f"keys.{name}"
    if not isinstance(fields, Mapping) or not _HASHED.fullmatch(str(fields.get("hash"))):
        # Whatever stands there is not repeated: it may be the key itself.
        raise ConfigError(
            f"{place}.hash: expected '{HASH}' and 64 hexadecimal digits, as 'softspec key new' writes them"
        )
    for field in fields:
        if field not in Key.model_fields:
            raise ConfigError(f"{place}.{as_key(field)}: {unknown_key(field, Key.model_fields)}")
    try:
        return Key.model_validate(fields)
    except ValidationError as error:
        raise ConfigError(f"{place}.{first_problem(error, fields)}") from None


def _checked(keys: dict[str, Key]) -> dict[str, Key]:
    """The keys, no two of which are the same."""
    names: dict[str, str] = {}
    for name, key in keys.items():
        if key.hash in names:
            raise ConfigError(f"keys '{names[key.hash]}' and '{name}' have one hash: make a key for each")
        names[key.hash] = name
    return keys


def _matches(patterns: tuple[str, ...] | None, name: str) -> bool:
    return patterns is None or any(fnmatchcase(name, pattern) for pattern in patterns)


def _refuse_open_file(path: Path, source: str) -> None:
    """Raise where everybody may see who has a key, or give himself one; that it is there is found when it is read."""
    try:
        mode = path.stat().st_mode
    except OSError:
        return
    if stat.S_ISREG(mode) and mode & (stat.S_IROTH | stat.S_IWOTH):
        raise ConfigError(
            f"the key file {source} may be read or written by everybody: run chmod 600 on it (a secret in Kubernetes: "
            "defaultMode 0440)"
        )
