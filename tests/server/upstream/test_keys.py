"""Keys come from a variable or a file, and a missing one is found before the server starts."""

from pathlib import Path

import pytest

from softspec.errors import ConfigError
from softspec.server.upstream.keys import read_keys
from softspec.server.upstream.settings import UpstreamSettings

KEY = "sk-very-secret"


def settings(**place: str) -> dict[str, UpstreamSettings]:
    return {"big": UpstreamSettings.model_validate({"url": "https://example.com", "model": "big-1", **place})}


def from_file(path: Path, content: bytes, mode: int = 0o600) -> str | None:
    path.write_bytes(content)
    path.chmod(mode)
    key = read_keys(settings(api_key_file=str(path)), {})["big"]
    return key.get_secret_value() if key else None


def test_a_key_is_read_from_a_variable() -> None:
    key = read_keys(settings(api_key_env="BIG_KEY"), {"BIG_KEY": f"{KEY}\n"})["big"]

    assert key is not None
    assert key.get_secret_value() == KEY
    assert KEY not in repr(key)
    assert KEY not in str(key)


def test_an_upstream_may_need_no_key() -> None:
    assert read_keys(settings(), {"OPENAI_API_KEY": KEY}) == {"big": None}


@pytest.mark.parametrize(
    "content", [b"sk-very-secret", b"sk-very-secret\n", b"sk-very-secret\r\n", b"  sk-very-secret "]
)
def test_a_key_is_read_from_a_file_without_its_line_end(content: bytes, tmp_path: Path) -> None:
    assert from_file(tmp_path / "key", content) == KEY


def test_a_missing_variable_is_named() -> None:
    with pytest.raises(ConfigError) as caught:
        read_keys(settings(api_key_env="BIG_KEY"), {})

    assert str(caught.value) == (
        "upstream 'big': the environment variable BIG_KEY is not set: put the key there"
    )


@pytest.mark.parametrize("value", ["", " \n"])
def test_an_empty_variable_is_named(value: str) -> None:
    with pytest.raises(ConfigError, match="variable BIG_KEY is empty"):
        read_keys(settings(api_key_env="BIG_KEY"), {"BIG_KEY": value})


@pytest.mark.parametrize(
    "value", [f"{KEY}\n{KEY}", f"{KEY}\r\nhost: x", f"Bearer {KEY}", f"{KEY}ü", f"{KEY}\x00"]
)
def test_what_is_more_than_a_key_is_refused_without_repeating_it(value: str) -> None:
    with pytest.raises(ConfigError, match="holds more than a key") as caught:
        read_keys(settings(api_key_env="BIG_KEY"), {"BIG_KEY": value})

    assert KEY not in str(caught.value)


@pytest.mark.parametrize("mode", [0o644, 0o604, 0o602])
def test_a_key_that_everybody_may_read_is_refused(mode: int, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="may be read or written by everybody: run chmod 600"):
        from_file(tmp_path / "key", KEY.encode(), mode)


@pytest.mark.parametrize("mode", [0o600, 0o400, 0o440, 0o640])
def test_a_key_may_be_for_a_group(mode: int, tmp_path: Path) -> None:
    """As secrets of a container's user are."""
    assert from_file(tmp_path / "key", KEY.encode(), mode) == KEY


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    for path, told in ((tmp_path / "none", "No such file"), (tmp_path, "Is a directory")):
        with pytest.raises(ConfigError, match=f"cannot read the key file {path}: {told}"):
            read_keys(settings(api_key_file=str(path)), {})


@pytest.mark.parametrize(("content", "told"), [(b"", "is empty"), (b"\xff\xfe", "is not text")])
def test_a_file_without_a_key_is_named(content: bytes, told: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"key file {tmp_path / 'key'} {told}"):
        from_file(tmp_path / "key", content)
