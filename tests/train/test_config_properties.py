"""Any configuration at all is a `TrainConfig` or one line: random values, keys and bytes.

The oracle is the contract itself; nothing of the reader is used to make the inputs.
"""

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from softspec.errors import ConfigError
from softspec.train.config import TrainConfig, dump_config, load_config, pinned

EDGES: list[Any] = [
    *(0, 1, -1, 2**31 - 1, 2**31, 2**63, 2**64, 10**30, 10**400),
    *(0.0, -0.0, 0.5, 1.0, 1e-320, 1e308, float("inf"), float("-inf"), float("nan")),
    *(
        "",
        " ",
        "none",
        "all",
        "all-linear",
        "yes",
        "off",
        "~",
        "1e-4",
        "010",
        "0x1",
        "2024-05-01",
        "a\0b",
        "\n",
    ),
    *(
        "\ud83d",
        "😀",
        "always",
        "block",
        "dpo",
        "group",
        "a" * 5000,
        "~nobody/x",
        "/",
        ".",
        "owner/name",
        "a/b/c",
    ),
    *(
        True,
        False,
        None,
        [],
        {},
        [[]],
        {"kind": "block"},
        {"kind": "always"},
        {"kind": "block", "block_size": 1},
    ),
]
VALUES = st.recursive(
    st.sampled_from(EDGES) | st.floats() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=4,
)
KEYS = st.sampled_from(list(TrainConfig.model_fields)) | st.text(max_size=6)
REQUIRED = {"base_model": "owner/base", "train_file": "train.jsonl", "output_dir": "out"}


def outcome(path: Path, overrides: list[str]) -> TrainConfig | None:
    """The configuration, or None where it was refused in one line."""
    try:
        return load_config(path, overrides)
    except ConfigError as error:
        message = str(error)
    assert message.isprintable()
    return None


def check_content(content: dict[str, Any], as_overrides: bool) -> None:
    """One configuration, in the file or after `--set`; what is accepted reads back as itself."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "config.yaml"
        path.write_text(json.dumps(REQUIRED if as_overrides else REQUIRED | content), encoding="utf-8")
        settings = [f"{key}={json.dumps(value)}" for key, value in content.items()] if as_overrides else []
        config = outcome(path, settings)
        if config:
            assert all(pinned(setting) for setting in settings)
            path.write_text(dump_config(config), encoding="utf-8")
            assert load_config(path) == config


def check_bytes(content: bytes) -> None:
    """One file of anything."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "config.yaml"
        path.write_bytes(content)
        outcome(path, [])


CONTENTS = st.dictionaries(KEYS, VALUES, max_size=4)
SIGNS = "<<:-[]{},&*!|>'\"#%@?~\n\t\r\0 "
YAML_BITS = st.sampled_from([*TrainConfig.model_fields, *SIGNS])
TEXTS = st.lists(YAML_BITS | st.text(max_size=3), max_size=20).map(lambda bits: "".join(bits))
BYTES = st.binary(max_size=40) | TEXTS.map(lambda text: text.encode("utf-8", "surrogatepass"))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(CONTENTS, st.booleans())
def test_any_values_are_a_configuration_or_one_line(content: dict[str, Any], as_overrides: bool) -> None:
    check_content(content, as_overrides)


@settings(max_examples=60, deadline=None)
@given(BYTES)
def test_any_bytes_are_a_configuration_or_one_line(content: bytes) -> None:
    check_bytes(content)


@pytest.mark.soak
@pytest.mark.slow
@settings(max_examples=10_000, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(CONTENTS, st.booleans())
def test_many_values_are_a_configuration_or_one_line(content: dict[str, Any], as_overrides: bool) -> None:
    check_content(content, as_overrides)


@pytest.mark.soak
@pytest.mark.slow
@settings(max_examples=10_000, deadline=None)
@given(BYTES)
def test_many_bytes_are_a_configuration_or_one_line(content: bytes) -> None:
    check_bytes(content)
