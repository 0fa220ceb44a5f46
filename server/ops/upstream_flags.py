"""`--upstream NAME=URL,model=MODEL,...`: what flags say of upstreams, over what the file says.

In: the text of the flags, and the upstreams of the file. Out: the fields of every upstream, as they would be written in
the file. No message repeats a value, as it may hold a password.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from softspec.artefact.validation import unknown_key
from softspec.artefact.yaml_file import absolute
from softspec.artefact.yaml_text import YamlError, parse_yaml
from softspec.errors import ConfigError
from softspec.server.upstream.settings import UpstreamSettings, require_name

TEXT = ("url", "model", "api_key_env", "api_key_file")
"""Fields whose values are taken as they are; those of the others are YAML."""
_FIELD = re.compile(r"([a-z_]+)=(.*)", re.DOTALL)
_NEXT_FIELD = re.compile(r",(?=[a-z_]+=)")


def with_upstreams(upstreams: Mapping[str, Any], flags: Sequence[str]) -> dict[str, Any]:
    """The upstreams of the file with what flags say, field by field.

    Raises:
        ConfigError: a flag cannot be read.
    """
    given: dict[str, dict[str, Any]] = {}
    for flag in flags:
        name, sign, rest = flag.partition("=")
        if not sign:
            raise ConfigError(
                "--upstream has no '=': expected NAME=URL,model=MODEL, for instance big=https://example.com/v1,model=m"
            )
        require_name(name)
        if name in given:
            raise ConfigError(f"--upstream names '{name}' twice: expected all of its fields in one flag")
        given[name] = _fields(name, rest)
    found = dict(upstreams)
    for name, fields in given.items():
        of_file = found.get(name)
        found[name] = {**(of_file if isinstance(of_file, Mapping) else {}), **fields}
    return found


def _fields(name: str, text: str) -> dict[str, Any]:
    """The fields of one flag; the first is the address unless it says otherwise."""
    fields: dict[str, Any] = {}
    for number, part in enumerate(_NEXT_FIELD.split(text)):
        found = _FIELD.fullmatch(part)
        key, value = found.groups() if found else ("url", part)
        assert found or number == 0  # what follows a comma begins as a field
        if key not in UpstreamSettings.model_fields and key != "api_key":  # see `read_upstreams`
            raise ConfigError(f"--upstream {name}: {key}: {unknown_key(key, UpstreamSettings.model_fields)}")
        if key in fields:
            raise ConfigError(f"--upstream {name}: {key} is there twice; keep one")
        fields[key] = _value(name, key, value)
    return fields


def _value(name: str, key: str, text: str) -> Any:
    if key == "api_key_file" and text:
        return str(absolute(Path.cwd(), text))
    if key in TEXT or key == "api_key":
        return text
    try:
        return parse_yaml(text)
    except YamlError:
        raise ConfigError(f"--upstream {name}: {key} cannot be read: expected a number or a list") from None
