"""The artefact: an ensemble directory, `ensemble.json` next to `member-0` ... `member-{K-1}`.

In: a directory. Out: a validated, frozen `Manifest`. Knows files and JSON; knows nothing of models, engines or HTTP.
"""

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from softspec.artefact.activation import Activation, AlwaysActivation
from softspec.artefact.calibration import Calibration
from softspec.artefact.validation import first_problem
from softspec.errors import ManifestError

MANIFEST_NAME = "ensemble.json"
WeightsRule = Literal["prefix_posterior", "fixed"]


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class BaseModelRef(_Frozen):
    """The frozen base that the adapters belong to; `path` is a directory or a hub id."""

    path: str
    revision: str | None = None
    fingerprint: str | None = None


class Manifest(_Frozen):
    """What `ensemble.json` says; unknown keys are refused.

    `log_weights` are normalised natural logs of the prior weights w, shape [K].
    """

    schema_version: Literal[1] = 1
    name: str = Field(min_length=1)
    base_model: BaseModelRef
    num_members: int = Field(ge=1)
    log_weights: tuple[float, ...]
    renyi_alpha: float = Field(ge=0, le=1)
    objective: Literal["sft", "dpo"] = "sft"
    granularity: Literal["sequence", "group", "token"] = "sequence"
    weights_rule: WeightsRule = "prefix_posterior"
    activation: Activation = AlwaysActivation()
    training: dict[str, Any] = Field(default_factory=dict)
    held_out: dict[str, Any] = Field(default_factory=dict)
    calibration: Calibration | None = None

    @model_validator(mode="after")
    def _weights_fit(self) -> "Manifest":
        if len(self.log_weights) != self.num_members:
            raise ValueError(
                f"log_weights has {len(self.log_weights)} entries but num_members is {self.num_members}"
            )
        total = math.fsum(math.exp(weight) for weight in self.log_weights)
        if not math.isclose(total, 1.0, abs_tol=1e-6):
            raise ValueError(f"exp(log_weights) sums to {total:.6g}, expected 1")
        if self.calibration is not None and self.calibration.weights_rule != self.weights_rule:
            raise ValueError(
                f"calibration was made with weights_rule '{self.calibration.weights_rule}', but the ensemble has "
                f"'{self.weights_rule}': calibrate it again"
            )
        return self


def member_dir(ensemble_dir: Path, member: int) -> Path:
    """The folder in which stock PEFT and stock vLLM find the adapter of one member."""
    return ensemble_dir / f"member-{member}"


def load_manifest(ensemble_dir: Path) -> Manifest:
    """Read and check an ensemble directory.

    Raises:
        ManifestError: no such directory or manifest, invalid content, or members whose adapters are missing,
            differ in rank, or are not plain LoRA.
    """
    path = ensemble_dir / MANIFEST_NAME
    if not path.is_file():
        raise ManifestError(
            f"no {MANIFEST_NAME} in '{ensemble_dir}': expected an ensemble written by 'softspec train'"
        )
    try:
        manifest = Manifest.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise ManifestError(f"{path}: {first_problem(error)}") from error
    for member in range(manifest.num_members):
        adapter_config(ensemble_dir, member)
    member_rank(ensemble_dir, manifest)
    return manifest


def save_manifest(ensemble_dir: Path, manifest: Manifest) -> None:
    """Write `ensemble.json` atomically: readers see the old file or the new one."""
    temporary = ensemble_dir / f".{MANIFEST_NAME}.{os.getpid()}"
    temporary.write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")
    os.replace(temporary, ensemble_dir / MANIFEST_NAME)


def adapter_config(ensemble_dir: Path, member: int) -> dict[str, Any]:
    """The member's PEFT `adapter_config.json`, refused unless both vLLM and PEFT serve it as plain LoRA."""
    folder = member_dir(ensemble_dir, member)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        if not (folder / name).is_file():
            raise ManifestError(
                f"'{folder / name}' is missing: copy the whole ensemble directory or train again"
            )
    try:
        config = TypeAdapter(dict[str, Any]).validate_json((folder / "adapter_config.json").read_bytes())
    except ValidationError as error:
        raise ManifestError(f"{folder / 'adapter_config.json'}: {first_problem(error)}") from error
    _refuse_special_lora(folder, config)
    if not isinstance(config.get("r"), int):
        raise ManifestError(
            f"{folder / 'adapter_config.json'}: 'r' is {config.get('r')!r}, expected the LoRA rank, a whole number"
        )
    return config


def member_rank(ensemble_dir: Path, manifest: Manifest) -> int:
    """The LoRA rank, which all members share."""
    ranks = [adapter_config(ensemble_dir, member)["r"] for member in range(manifest.num_members)]
    if len(set(ranks)) > 1:
        raise ManifestError(
            f"members of '{manifest.name}' differ in LoRA rank {ranks}: expected one rank for all"
        )
    return ranks[0]


def _refuse_special_lora(folder: Path, config: Mapping[str, Any]) -> None:
    found = []
    if config.get("peft_type") != "LORA":
        found.append(f"peft_type={config.get('peft_type')!r}")
    found += [
        key
        for key in ("use_dora", "modules_to_save", "alora_invocation_tokens", "rank_pattern")
        if config.get(key)
    ]
    if config.get("bias", "none") != "none":
        found.append(f"bias={config['bias']!r}")
    if found:
        raise ManifestError(
            f"'{folder}' uses {', '.join(found)}: expected plain LoRA, which vLLM and PEFT both serve"
        )
