"""The server's settings: read from a file, from variables and from flags, and carried to vLLM's processes.

In: `--server-config`, SOFTSPEC_* variables and flags; of what several say, the last of these holds. Out: `Settings`,
and the one variable that carries them. The only place in `server/` that knows the names of variables.
"""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from softspec.artefact.yaml_file import absolute
from softspec.errors import ConfigError
from softspec.server.access.keys import read_key_file
from softspec.server.access.settings import AccessSettings
from softspec.server.observe.settings import LogSettings
from softspec.server.ops.server_config import RecordSettings, ServerConfig, read_server_config
from softspec.server.ops.upstream_flags import with_upstreams
from softspec.server.policy.fields import PolicyFields, read_threshold
from softspec.server.policy.policy import Policy
from softspec.server.policy.rules import PolicyRules
from softspec.server.rollout.aliases import Weights
from softspec.server.rollout.settings import Shadow, with_aliases
from softspec.server.upstream.keys import read_keys
from softspec.server.upstream.settings import UpstreamSettings, read_upstreams

CARRIED = "SOFTSPEC_SETTINGS"
"""Whole settings as JSON, from `softspec serve` to the plugin; it wins over all other variables."""
ENSEMBLES = "SOFTSPEC_ENSEMBLE"
SERVER_CONFIG = "SOFTSPEC_SERVER_CONFIG"
POLICY = "SOFTSPEC_POLICY_"
"""Begins the name of a variable for every field of a policy."""
POLICY_PINNED = "SOFTSPEC_POLICY_PINNED"
BASE_UNCHECKED = "SOFTSPEC_BASE_UNCHECKED"
ALLOW_UNTESTED = "SOFTSPEC_ALLOW_UNTESTED"
NO_SHARED_LAYERS = "SOFTSPEC_NO_SHARED_LAYERS"
LOG_CONTENT = "SOFTSPEC_LOG_CONTENT"
_NUMBERS: dict[str, Callable[[str], Any]] = {
    "threshold": read_threshold,
    "min_tokens": int,
    "hold_tokens": int,
}
"""Fields of a policy that are no text."""


@dataclass(frozen=True)
class Flags:
    """What the command line says of the policy and what it needs; None in `policy` where it says nothing.

    Where the policy is fixed, no request may have another one.
    """

    policy: Mapping[str, Any] = field(default_factory=dict)
    policy_pinned: bool = False
    policy_fixed: bool = False
    upstreams: tuple[str, ...] = ()
    record: Path | None = None
    keys: Path | None = None
    log_content: bool = False
    max_wait_s: float | None = None
    ops_port: int | None = None
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True)
class Settings:
    """What a server is told: the directories of its ensembles, its policy with what a request may change, and risks.

    `base_unchecked` serves ensembles on whatever base there is; `allow_untested` takes any option of vLLM's engine.
    `no_shared_layers` computes the layers below the adapters for every member.
    """

    ensembles: tuple[Path, ...]
    rules: PolicyRules = field(default_factory=PolicyRules)
    upstreams: Mapping[str, UpstreamSettings] = field(default_factory=dict)
    record: RecordSettings | None = None
    base_unchecked: bool = False
    allow_untested: bool = False
    no_shared_layers: bool = False
    access: AccessSettings = field(default_factory=AccessSettings)
    log: LogSettings = field(default_factory=LogSettings)
    aliases: Mapping[str, Weights] = field(default_factory=dict)
    shadows: Mapping[str, Shadow] = field(default_factory=dict)

    @staticmethod
    def from_environment(environment: Mapping[str, str]) -> "Settings":
        """The settings that `to_environment` wrote, or else those that a user's own variables make.

        Raises:
            ConfigError: no ensemble is named, or the policy cannot be followed.
        """
        if (carried := environment.get(CARRIED)) is not None:
            try:
                return _settings.validate_python(json.loads(carried))
            except ValueError as error:
                raise ConfigError(f"{CARRIED} is not what 'softspec serve' wrote: unset it") from error
        paths = [part for part in environment.get(ENSEMBLES, "").split(os.pathsep) if part]
        if not paths:
            raise ConfigError(f"{ENSEMBLES} is not set: expected one or more ensemble directories")
        return read_settings(
            [Path(path) for path in paths],
            environment,
            Flags(),
            base_unchecked=_is_on(BASE_UNCHECKED, environment),
            allow_untested=_is_on(ALLOW_UNTESTED, environment),
            no_shared_layers=_is_on(NO_SHARED_LAYERS, environment),
        )

    def to_environment(self) -> dict[str, str]:
        """The variable that `from_environment` reads back as these settings; no key of an upstream is in it."""
        return {CARRIED: json.dumps(_settings.dump_python(self, mode="json", exclude_defaults=True))}


_settings = TypeAdapter(Settings)


def told_by_variables(
    settings: Settings, environment: Mapping[str, str], server_config: Path | None = None
) -> dict[str, str]:
    """Variables that a person can read and that make these settings; the one that carries them, where none do."""
    policy = settings.rules.default
    given = {
        name: str(value)
        for name in PolicyFields.model_fields
        if (value := getattr(policy, name)) is not None and value != getattr(Policy(), name)
    }
    risks = {
        POLICY_PINNED: settings.rules.pinned,
        BASE_UNCHECKED: settings.base_unchecked,
        ALLOW_UNTESTED: settings.allow_untested,
        NO_SHARED_LAYERS: settings.no_shared_layers,
    }
    variables = {
        ENSEMBLES: os.pathsep.join(map(str, settings.ensembles)),
        **({SERVER_CONFIG: str(server_config.resolve())} if server_config else {}),
        **{POLICY + name.upper(): value for name, value in given.items()},
        **{name: "1" for name, is_taken in risks.items() if is_taken},
    }
    try:
        told = Settings.from_environment({**environment, **variables})
    except ConfigError:
        return settings.to_environment()
    return variables if told == settings else settings.to_environment()


def read_settings(
    ensembles: Sequence[Path],
    environment: Mapping[str, str],
    flags: Flags,
    server_config: Path | None = None,
    *,
    base_unchecked: bool = False,
    allow_untested: bool = False,
    no_shared_layers: bool = False,
) -> Settings:
    """The settings of a server over these ensembles: flags win over variables, and those over the file.

    Raises:
        ConfigError: the file cannot be read, a value is wrong, or the policy cannot be followed here.
    """
    if server_config is None and SERVER_CONFIG in environment:
        server_config = Path(environment[SERVER_CONFIG])
    config = ServerConfig() if server_config is None else read_server_config(server_config)
    upstreams = read_upstreams(with_upstreams(config.upstreams, flags.upstreams))
    read_keys(upstreams, environment)  # that they can be read; they are read again where they are used
    rules = PolicyRules(
        config.policy.change(Policy()).changed(**_policy_variables(environment)).changed(**flags.policy),
        tuple(upstreams),
        config.allow_override and not flags.policy_fixed,
        config.policy_pinned or flags.policy_pinned or _is_on(POLICY_PINNED, environment),
        config.allowed_actions,
        config.allowed_upstreams,
    )
    record = _record(config.record, flags.record)
    access = _access(config.access, flags)
    access.storage_in(environment)  # that it is said, likewise
    log = config.log
    if flags.log_content or _is_on(LOG_CONTENT, environment):
        log = log.model_copy(update={"content": True})
    if log.content and not log.requests:
        raise ConfigError("requests are not logged, so their content cannot be: give log: {requests: true}")
    return Settings(
        tuple(ensembles),
        rules,
        upstreams,
        record,
        base_unchecked,
        allow_untested,
        no_shared_layers,
        access,
        log,
        with_aliases(config.aliases, flags.aliases),
        config.shadows,
    )


def _policy_variables(environment: Mapping[str, str]) -> dict[str, Any]:
    """The fields of a policy that variables give."""
    given = {name: environment.get(POLICY + name.upper()) for name in PolicyFields.model_fields}
    return {
        name: _number(POLICY + name.upper(), text, _NUMBERS[name]) if name in _NUMBERS else text
        for name, text in given.items()
        if text is not None
    }


def _number(variable: str, text: str, kind: Callable[[str], Any]) -> Any:
    try:
        return kind(text)
    except ValueError as error:
        raise ConfigError(f"{variable} is '{text}': expected a number") from error


def _record(settings: RecordSettings | None, flag: Path | None) -> RecordSettings | None:
    """Where to record: the file that the flag names, else that of the server's file."""
    if flag is None:
        return settings
    path = absolute(Path.cwd(), str(flag))
    return settings.model_copy(update={"path": path}) if settings else RecordSettings(path=path)


def _access(settings: AccessSettings, flags: Flags) -> AccessSettings:
    """Who may ask, and how much: what flags say, else the server's file."""
    keys = None if flags.keys is None else absolute(Path.cwd(), str(flags.keys))
    access = settings.changed(keys=keys, max_wait_s=flags.max_wait_s, ops_port=flags.ops_port)
    if access.keys is not None:
        read_key_file(access.keys)  # that it can be; it is read again where the keys are used
    return access


def _is_on(name: str, environment: Mapping[str, str]) -> bool:
    if (text := environment.get(name, "0")) not in ("0", "1"):
        raise ConfigError(f"{name} is '{text}': expected 0 or 1")
    return text == "1"
