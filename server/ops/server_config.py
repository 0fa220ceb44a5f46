"""The file that `softspec serve --server-config` reads: policy, limits, upstreams, the record,
who may ask, and what is logged.

In: a YAML file. Out: what it says, checked as far as the file alone allows. Nothing in it is taken from the
environment; keys of upstreams are not in it, only where they are. Knows no flags.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from softspec.artefact.validation import as_key, first_problem, unknown_key
from softspec.artefact.yaml_file import absolute, in_line, read_mapping
from softspec.errors import ConfigError
from softspec.server.access.settings import AccessSettings, RequestLimits
from softspec.server.observe.settings import LogSettings
from softspec.server.policy.fields import Name, PolicyFields
from softspec.server.policy.policy import Action, Policy
from softspec.server.rollout.settings import AliasesField, Shadow
from softspec.server.upstream.settings import UpstreamSettings

_STRICT = ConfigDict(extra="forbid", strict=True, frozen=True)
Names = Annotated[tuple[Name, ...], Field(strict=False)]
Actions = Annotated[tuple[Action, ...], Field(strict=False)]


class RecordSettings(BaseModel):
    """Where requests that were not answered are kept: at most `keep` files of `max_bytes` beside the newest."""

    model_config = _STRICT

    path: Annotated[Path, Field(strict=False)]
    max_bytes: Annotated[int, Field(ge=65_536)] = 100_000_000
    keep: Annotated[int, Field(ge=0, le=10_000)] = 9


def _path_alone(value: object) -> object:
    return {"path": value} if isinstance(value, str) else value


class ServerConfig(BaseModel):
    """The keys of the file; what is left out is as without a file."""

    model_config = _STRICT

    policy: PolicyFields = Field(
        default_factory=PolicyFields, description="The policy of requests that name none."
    )
    allow_override: bool = Field(
        default=True, description="Whether requests may have another policy than the server's."
    )
    policy_pinned: bool = Field(default=False, description="Whether requests may only tighten the policy.")
    allowed_actions: Actions | None = Field(
        default=None, description="Actions that requests may ask for; all when empty."
    )
    allowed_upstreams: Names | None = Field(
        default=None, description="Upstreams that requests may name; all when empty."
    )
    upstreams: dict[str, Any] = Field(
        default_factory=dict,
        description="Servers that requests are routed to, by name.",
    )
    record: Annotated[RecordSettings | None, BeforeValidator(_path_alone)] = Field(
        default=None,
        description="File to which abstained and routed requests are appended, or `path`, `max_bytes` and `keep`.",
    )
    access: AccessSettings = Field(
        default_factory=AccessSettings,
        description="Who may ask, and how much: [its own keys](#who-may-ask).",
    )
    log: LogSettings = Field(
        default=LogSettings(),
        description="The request log: `requests: false` for none, `content: true` for prompts and answers too.",
    )
    aliases: AliasesField = Field(
        default_factory=dict,
        description="Names that stand for one of several ensembles, with their weights: [rolling out](#rolling-out).",
    )
    shadows: dict[str, Shadow] = Field(
        default_factory=dict,
        description="Ensembles that are asked what others are asked, and not heard: `of` whom, and which `share`.",
    )


def read_server_config(path: Path) -> ServerConfig:
    """What the file says; relative paths in it are relative to the file.

    Raises:
        ConfigError: no such file, no YAML mapping, an unknown key, or a value that cannot be.
    """
    source = in_line(str(path))
    content = read_mapping(path, example="policy: {action: abstain, threshold: 0.35}")
    try:
        for inner, kind in _inner_mappings(content):
            _refuse_unknown(inner, kind, content)
        config = ServerConfig.model_validate(content)
        config.policy.change(Policy())
        return _with_paths_from(path.resolve().parent, config)
    except ValidationError as error:
        raise ConfigError(f"{source}: {first_problem(error, content)}") from error
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from error


def _inner_mappings(content: Mapping[str, Any]) -> list[tuple[tuple[str, ...], type[BaseModel]]]:
    """The places of the file's mappings, each with the keys that it may have."""
    upstreams = content.get("upstreams")
    named = upstreams if isinstance(upstreams, Mapping) else {}
    places: list[tuple[tuple[str, ...], type[BaseModel]]] = [
        ((), ServerConfig),
        (("policy",), PolicyFields),
        (("record",), RecordSettings),
        (("access",), AccessSettings),
        (("access", "limits"), RequestLimits),
        (("log",), LogSettings),
    ]
    places += [(("upstreams", name), UpstreamSettings) for name in named]
    shadows = content.get("shadows")
    return places + [
        (("shadows", name), Shadow) for name in (shadows if isinstance(shadows, Mapping) else {})
    ]


def _refuse_unknown(place: tuple[str, ...], kind: type[BaseModel], content: Any) -> None:
    """Raise for a key that the mapping at this place cannot have."""
    for part in place:
        content = content.get(part) if isinstance(content, Mapping) else None
    for key in content if isinstance(content, Mapping) else ():
        if (
            key not in kind.model_fields and key != "api_key"
        ):  # of which more is said where upstreams are read
            raise ConfigError(
                f"{'.'.join(map(as_key, (*place, key)))}: {unknown_key(key, kind.model_fields)}"
            )


def _with_paths_from(folder: Path, config: ServerConfig) -> ServerConfig:
    """The configuration with absolute paths."""
    upstreams = dict(config.upstreams)
    for name, fields in upstreams.items():
        if isinstance(fields, dict) and isinstance(file := fields.get("api_key_file"), str) and file:
            upstreams[name] = {**fields, "api_key_file": str(absolute(folder, file))}
    record = config.record
    if record is not None:
        record = record.model_copy(update={"path": absolute(folder, str(record.path))})
    access = config.access.with_paths_from(folder)
    return config.model_copy(update={"upstreams": upstreams, "record": record, "access": access})
