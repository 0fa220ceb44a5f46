"""Which adapters are trained: the ensemble itself, and the same configuration with a few keys changed.

In: the ensemble's `TrainConfig`. Out: one for each baseline that is trained. Trains nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from softspec.artefact.validation import first_problem
from softspec.errors import ConfigError
from softspec.train.config import TrainConfig
from softspec.train.members.servable import LARGEST_RANK

ENSEMBLE = "ensemble"
TRAINED = ("single", "wide", "independent", "dropout")
UNTRAINED = ("base", "laplace", "temperature", "polygraph")
NAMES = ("base", *TRAINED, "laplace", "temperature", "polygraph")
"""All baselines, in the order of the table."""
OTHER_ORDER = "alpha-"
OF_SEVERAL = (
    "responsibility_floor",
    "alpha_warmup_ratio",
    "reseed_starved",
    "weights_learning_rate",
    "weights_floor",
)
"""Settings that are about how members share examples: where they do not, the defaults hold."""


@dataclass(frozen=True)
class Noise:
    """MC dropout: the share of inputs that adapters go without, and how many draws of weights are scored."""

    rate: float
    samples: int


def at_order(alpha: float) -> str:
    """The name of the ensemble whose configuration differs in renyi_alpha alone."""
    return f"{OTHER_ORDER}{alpha:g}"


def needed(names: tuple[str, ...]) -> tuple[str, ...]:
    """Which models are trained so that these baselines can be scored; the ensemble is always one."""
    wanted = {*names, *(("single",) if {"laplace", "polygraph"} & set(names) else ())}
    orders = (name for name in names if name.startswith(OTHER_ORDER))
    return (ENSEMBLE, *orders, *(name for name in TRAINED if name in wanted))


def variant(config: TrainConfig, name: str, seed: int, noise: Noise, folder: Path) -> TrainConfig:
    """How a model is trained, into `folder`/`name`.

    `wide` has K times the rank at the same lora_alpha / lora_r: its update is what K adapters would add up to, each
    part as strong as a member's.

    Raises:
        ConfigError: the configuration allows no such baseline.
    """
    members = config.num_members
    # A step's examples may follow from the number of members; here they are the ensemble's.
    same_steps = {"gradient_accumulation_steps": config.examples_per_step // config.micro_batch_size}
    independent = {**same_steps, **_defaults(OF_SEVERAL)}
    alone = {**independent, "num_members": 1}
    changes: Mapping[str, Mapping[str, Any]] = {
        ENSEMBLE: {},
        "single": alone,
        "wide": {**alone, "lora_r": config.lora_r * members, "lora_alpha": config.lora_alpha * members}
        | _times_steps(config, members),
        "independent": {**independent, "renyi_alpha": 0.0},
        "dropout": {**alone, "lora_dropout": noise.rate},
    }
    is_order = name.startswith(OTHER_ORDER)
    content = {
        **config.model_dump(),
        **({"renyi_alpha": float(name.removeprefix(OTHER_ORDER))} if is_order else changes[name]),
        "seed": seed,
        "name": name,
        "output_dir": folder / name,
    }
    try:
        found = TrainConfig.model_validate(content)
    except ValidationError as error:
        raise ConfigError(f"baseline '{name}': {first_problem(error)}") from error
    if found.lora_r > LARGEST_RANK:
        raise ConfigError(
            f"baseline '{name}' has lora_r {found.lora_r}, {members} times the ensemble's, and at most {LARGEST_RANK} "
            "can be loaded: leave it out with --only"
        )
    return found


def _times_steps(config: TrainConfig, factor: int) -> dict[str, Any]:
    if config.max_steps is not None:
        return {"max_steps": config.max_steps * factor}
    return {"num_epochs": config.num_epochs * factor}


def _defaults(keys: tuple[str, ...]) -> dict[str, Any]:
    return {key: TrainConfig.model_fields[key].default for key in keys}
