"""Ensembles for measuring: random adapters on a base, or the first members of a trained ensemble.

In: directories. Out: ordinary ensemble directories. Nothing is trained: adapters of one shape cost the same.
"""

import math
from collections.abc import Collection
from pathlib import Path

import torch
from peft import LoraConfig
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM

from softspec.artefact.activation import Activation, AlwaysActivation
from softspec.artefact.manifest import BaseModelRef, Manifest, load_manifest, member_dir, save_manifest
from softspec.errors import ConfigError
from softspec.train.members.spec import resolve_spec


def random_adapters(
    base_dir: Path,
    out_dir: Path,
    num_members: int,
    rank: int = 4,
    seed: int = 0,
    activation: Activation | None = None,
    name: str = "tiny-ensemble",
    layers: Collection[int] | None = None,
) -> Path:
    """Write an ensemble directory whose members differ clearly: A and B random, on all linear layers of the decoder.

    The layers' lora_alpha is 2 * rank. Returns `out_dir`.

    Args:
        layers: the decoder layers that get adapters; None is all.
    Raises:
        ConfigError: the base does not have one of them.
    """
    shapes = _linear_shapes(base_dir, layers)
    generator = torch.Generator().manual_seed(seed)
    for member in range(num_members):
        folder = member_dir(out_dir, member)
        folder.mkdir(parents=True)
        tensors = {}
        for module, (out_features, in_features) in shapes.items():
            down = torch.randn(rank, in_features, generator=generator) / math.sqrt(in_features)
            up = torch.randn(out_features, rank, generator=generator) / math.sqrt(rank)
            tensors[f"base_model.model.{module}.lora_A.weight"] = down
            tensors[f"base_model.model.{module}.lora_B.weight"] = 0.5 * up
        save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
        LoraConfig(
            r=rank,
            lora_alpha=2 * rank,
            target_modules=sorted({module.rpartition(".")[2] for module in shapes}),
            layers_to_transform=None if layers is None else sorted(layers),
            task_type="CAUSAL_LM",
            base_model_name_or_path=str(base_dir),
            inference_mode=True,
        ).save_pretrained(str(folder))
    manifest = Manifest(
        name=name,
        base_model=BaseModelRef(path=str(base_dir)),
        num_members=num_members,
        log_weights=(-math.log(num_members),) * num_members,
        renyi_alpha=0.8,
        activation=activation or AlwaysActivation(),
    )
    save_manifest(out_dir, manifest)
    return out_dir


def first_members(ensemble_dir: Path, num_members: int, out_dir: Path) -> Path:
    """Write an ensemble directory of the first members of another, by links, equally weighted. Returns `out_dir`.

    Raises:
        ConfigError: the other has fewer members.
    """
    manifest = load_manifest(ensemble_dir)
    if not 1 <= num_members <= manifest.num_members:
        raise ConfigError(
            f"--members is {num_members} but '{ensemble_dir}' has {manifest.num_members}: expected 1 to "
            f"{manifest.num_members}"
        )
    out_dir.mkdir(parents=True)
    for member in range(num_members):
        member_dir(out_dir, member).symlink_to(member_dir(ensemble_dir, member).resolve())
    weights = (-math.log(num_members),) * num_members
    save_manifest(out_dir, manifest.model_copy(update={"num_members": num_members, "log_weights": weights}))
    return out_dir


def _linear_shapes(base_dir: Path, layers: Collection[int] | None) -> dict[str, tuple[int, int]]:
    """Module path -> (out, in) of every linear layer of these decoder layers, without loading weights."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(base_dir))
    spec = resolve_spec(model, 1, 1, "all-linear", "all" if layers is None else tuple(layers))
    return {name: (module.out_features, module.in_features) for name, module in spec.targets(model)}
