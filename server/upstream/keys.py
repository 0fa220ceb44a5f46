"""The key of an upstream, from the environment variable or the file that its settings name.

In: settings and the environment. Out: the key, in a wrapper that does not show it. No message here repeats a key.
"""

import stat
from collections.abc import Mapping
from pathlib import Path

from pydantic import SecretStr

from softspec.errors import ConfigError
from softspec.server.upstream.settings import UpstreamSettings

MOST_BYTES = 16_384


def read_keys(
    upstreams: Mapping[str, UpstreamSettings], environment: Mapping[str, str]
) -> dict[str, SecretStr | None]:
    """The keys by the names of their upstreams; None for one that needs none.

    Raises:
        ConfigError: a key is not where it should be, or others may read its file.
    """
    return {name: _key(name, settings, environment) for name, settings in upstreams.items()}


def _key(name: str, settings: UpstreamSettings, environment: Mapping[str, str]) -> SecretStr | None:
    if settings.api_key_env is not None:
        variable = settings.api_key_env
        if (found := environment.get(variable)) is None:
            raise ConfigError(
                f"upstream '{name}': the environment variable {variable} is not set: put the key there"
            )
        return _checked(found, f"upstream '{name}': the environment variable {variable}")
    if settings.api_key_file is not None:
        path = Path(settings.api_key_file)
        return _checked(_read(name, path), f"upstream '{name}': the key file {path}")
    return None


def _read(name: str, path: Path) -> str:
    try:
        mode = path.stat().st_mode
        if stat.S_ISREG(mode) and mode & (stat.S_IROTH | stat.S_IWOTH):
            raise ConfigError(
                f"upstream '{name}': the key file {path} may be read or written by everybody: run chmod 600 on it (a "
                "secret in Kubernetes: defaultMode 0440)"
            )
        with path.open("rb") as file:
            return file.read(MOST_BYTES).decode()
    except OSError as error:
        raise ConfigError(f"upstream '{name}': cannot read the key file {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(
            f"upstream '{name}': the key file {path} is not text: expected the key alone"
        ) from None


def _checked(text: str, place: str) -> SecretStr:
    key = text.strip()
    if not key:
        raise ConfigError(f"{place} is empty: put the key there")
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise ConfigError(f"{place} holds more than a key: expected one line of ASCII without spaces")
    return SecretStr(key)
