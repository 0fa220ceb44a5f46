"""Trained models of a table: found where they are finished, gone on with where they stopped, trained otherwise.

In: `TrainConfig`s. Out: ensemble directories, and what each cost. What lies there and is another model is refused,
never replaced.
"""

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open

from softspec.artefact.manifest import Manifest, load_manifest, member_dir
from softspec.console import tell
from softspec.errors import ConfigError, Interrupted
from softspec.train.config import TrainConfig
from softspec.train.loop.folder import LOG_NAME, run_folder
from softspec.train.members.load import ADAPTER_WEIGHTS
from softspec.train.run import train_ensemble

PLACES = ("base_model", "train_file", "eval_file", "output_dir", "name")
"""Settings that say where something is; what is there is compared instead."""


@dataclass(frozen=True)
class Origin:
    """What all models of a table were trained on: the base's fingerprint and the digest of the training examples."""

    base: str
    examples: str


@dataclass(frozen=True)
class Cost:
    """What a model costs: in training, and how many adapters a row runs through.

    `adapter_steps` is members times optimizer steps; `seconds` those of the steps, without scores and checkpoints;
    `parameters` all weights that were trained.
    """

    adapter_steps: int
    seconds: float
    parameters: int
    passes: int

    def as_json(self) -> dict[str, float]:
        return asdict(self)


def check_finished(config: TrainConfig, origin: Origin) -> None:
    """Look at what is there, before hours are spent.

    Raises:
        ConfigError: what lies in `output_dir` was trained with other settings, on another base or on other rows.
    """
    if config.output_dir.exists() and (what := _difference(config, load_manifest(config.output_dir), origin)):
        raise ConfigError(
            f"'{config.output_dir}' was trained with {what}: name another --output-dir, or delete it"
        )


def is_same(config: TrainConfig, directory: Path, origin: Origin) -> bool:
    """Whether a directory holds what this configuration would come to."""
    return directory.exists() and not _difference(config, load_manifest(directory), origin)


def trained(config: TrainConfig) -> Path:
    """The finished model of a configuration whose place was checked.

    Raises:
        Interrupted: by a signal; the same command goes on.
    """
    if config.output_dir.exists():
        return config.output_dir
    config.output_dir.parent.mkdir(parents=True, exist_ok=True)
    tell(f"training '{config.name}' of seed {config.seed} into {config.output_dir}")
    try:
        return train_ensemble(config, resume=run_folder(config).checkpoint.is_file())
    except Interrupted as error:
        raise Interrupted(
            f"stopped while '{config.name}' of seed {config.seed} was trained; the same command goes on",
            error.signal_number,
        ) from error


def cost_of(directory: Path) -> Cost:
    """What a trained model cost."""
    manifest = load_manifest(directory)
    steps = int(manifest.training["steps"])
    lines = (directory / LOG_NAME).read_text(encoding="utf-8").splitlines()
    seconds = [event["seconds"] for event in map(json.loads, lines) if "seconds" in event]
    return Cost(
        adapter_steps=manifest.num_members * steps,
        seconds=round(steps * sum(seconds) / max(1, len(seconds)), 3),
        parameters=sum(_weights(directory, member) for member in range(manifest.num_members)),
        passes=manifest.num_members,
    )


def _weights(directory: Path, member: int) -> int:
    with safe_open(member_dir(directory, member) / ADAPTER_WEIGHTS, framework="pt") as file:
        return sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118


def _difference(config: TrainConfig, manifest: Manifest, origin: Origin) -> str | None:
    """What of a model is not as it would be trained now."""
    if manifest.base_model.fingerprint != origin.base:
        return "another base"
    if manifest.training.get("examples_sha256") != origin.examples:
        return "other rows"
    wanted = _settings(config.model_dump(mode="json"))
    found = _settings(manifest.training.get("settings", {}))
    for key, value in wanted.items():
        if found.get(key) != value:
            return f"{key} {found.get(key)}, not {value}"
    return None


def _settings(dumped: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in dumped.items() if key not in PLACES}
