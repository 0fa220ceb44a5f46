"""What an operator says of an upstream: where it is, what to ask it, how long to wait, how often to try.

In: the fields of one upstream, from flags or a file. Out: settings that are checked. Holds no key, only where it is.
"""

import re
from collections.abc import Mapping
from typing import Annotated, Any

import httpx2
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from softspec.artefact.validation import first_problem
from softspec.errors import ConfigError

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
"""What an upstream may be called: the name stands in headers and in the labels of metrics."""
KEPT_FIELDS = frozenset({"model", "messages", "prompt", "stream", "stream_options"})
"""Fields without which a request would be another one."""

Seconds = Annotated[float, Field(gt=0, le=86_400, allow_inf_nan=False)]


class UpstreamSettings(BaseModel):
    """One upstream; its name is the key under which it stands."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, hide_input_in_errors=True)

    url: str
    model: Annotated[str, Field(min_length=1)]
    api_key_env: Annotated[str, Field(min_length=1)] | None = None
    api_key_file: Annotated[str, Field(min_length=1)] | None = None
    connect_timeout_s: Seconds = 5.0
    first_byte_timeout_s: Seconds = 60.0
    timeout_s: Seconds = 300.0
    max_retries: Annotated[int, Field(ge=0, le=10)] = 2
    circuit_failures: Annotated[int, Field(ge=1)] = 5
    circuit_open_s: Seconds = 30.0
    drop_fields: Annotated[tuple[str, ...], Field(strict=False)] = ()

    @field_validator("url")
    @classmethod
    def _whole_url(cls, url: str) -> str:
        return normal_url(url)

    @field_validator("drop_fields")
    @classmethod
    def _droppable(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if kept := sorted(KEPT_FIELDS.intersection(names)):
            raise ValueError(f"expected fields that may be left out of a request, not {', '.join(kept)}")
        return names

    @model_validator(mode="after")
    def _one_key(self) -> "UpstreamSettings":
        if self.api_key_env is not None and self.api_key_file is not None:
            raise ValueError("api_key_env and api_key_file are both given: expected one place for the key")
        return self


def read_upstreams(given: Mapping[str, Any]) -> dict[str, UpstreamSettings]:
    """The upstreams by name.

    Raises:
        ConfigError: a name or a field is wrong; what was given is not repeated, as it may hold a key.
    """
    found = {}
    for name, fields in given.items():
        require_name(name)
        if isinstance(fields, Mapping) and "api_key" in fields:
            raise ConfigError(
                f"upstream '{name}': api_key is given, but keys are read from elsewhere only: name a variable with "
                "api_key_env, or a file with api_key_file"
            )
        try:
            found[name] = UpstreamSettings.model_validate(fields)
        except ValidationError as error:
            raise ConfigError(f"upstream '{name}': {_problem(error, fields)}") from None
    return found


def require_name(name: str) -> None:
    """Raise unless an upstream may have this name."""
    if not NAME.fullmatch(name):
        raise ConfigError(
            f"an upstream is named '{name}': expected up to 64 letters, digits, '.', '_' and '-', the first of them a "
            "letter or a digit"
        )


def normal_url(url: str) -> str:
    """The address that `/chat/completions` is put behind; without a path of its own it is that of `/v1`.

    Raises:
        ValueError: it is no such address; the message does not repeat it, as it may hold a password.
    """
    if " " in url or not url.isprintable():
        raise ValueError("url has spaces or control characters: expected one like https://example.com/v1")
    try:
        parsed = httpx2.URL(url)
        parsed.raw_host.decode().encode("idna")  # as the system's resolver will
    except (httpx2.InvalidURL, UnicodeError):
        raise ValueError("url cannot be read: expected one like https://example.com:8000/v1") from None
    if parsed.userinfo or "@" in url.partition("://")[2].partition("/")[0]:
        raise ValueError("url holds a user or a password: give the key with api_key_env or api_key_file")
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise ValueError("url must begin with http:// or https:// and name a host")
    if "%" in parsed.host or not (parsed.port is None or 0 < parsed.port < 65_536):
        raise ValueError(
            "url names a host or a port that cannot be: expected one like https://example.com:8000/v1"
        )
    if "?" in url or "#" in url:
        raise ValueError("url has a query or a fragment: expected one that ends with a path, such as /v1")
    path = parsed.path.rstrip("/")
    if path.endswith(("/completions", "/responses", "/messages")):
        raise ValueError("url names a route: expected what comes before it, such as https://example.com/v1")
    return str(parsed.copy_with(path=path or "/v1"))


def _problem(error: ValidationError, fields: object) -> str:
    """The first complaint, without the value that caused it: a key may have been given in the wrong place."""
    return re.sub(r" \(found (?!the keys).*\)$", "", first_problem(error, fields))
