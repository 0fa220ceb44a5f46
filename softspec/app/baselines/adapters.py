"""Ensemble directories that nobody trains: the base by itself, and draws of the weights of an adapter with dropout.

In: a configuration, or a directory with one adapter. Out: ordinary ensemble directories, so whatever scores an ensemble
scores these.
"""

import math
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from softspec.app.baselines.variants import Noise
from softspec.artefact.fingerprint import fingerprint
from softspec.artefact.manifest import BaseModelRef, Manifest, load_manifest, member_dir, save_manifest
from softspec.train.config import TrainConfig
from softspec.train.members.base import load_skeleton
from softspec.train.members.linear import Dropout
from softspec.train.members.load import ADAPTER_WEIGHTS
from softspec.train.members.spec import LoraSpec, resolve_spec
from softspec.train.result.export import lora_config

ADAPTER_CONFIG = "adapter_config.json"


def base_alone(config: TrainConfig, folder: Path) -> Path:
    """The frozen base as an ensemble of one, whose adapter is zero; `folder`/base."""

    def write(directory: Path) -> None:
        skeleton = load_skeleton(config.base_model, config.model_revision)
        whole = resolve_spec(skeleton, 1, 1, config.target_modules, config.layers_to_transform)
        first = LoraSpec(1, 1, whole.target_modules[:1], whole.layers[:1])
        weights = {}
        for name, module in first.targets(skeleton):
            weights[f"base_model.model.{name}.lora_A.weight"] = torch.zeros(1, module.in_features)
            weights[f"base_model.model.{name}.lora_B.weight"] = torch.zeros(module.out_features, 1)
        member = member_dir(directory, 0)
        member.mkdir(parents=True)
        save_file(weights, member / ADAPTER_WEIGHTS, metadata={"format": "pt"})
        lora_config(first, config.base_model).save_pretrained(str(member))
        base = BaseModelRef(
            path=config.base_model,
            revision=config.model_revision,
            fingerprint=fingerprint(config.base_model, config.model_revision),
        )
        save_manifest(
            directory,
            Manifest(
                name="base",
                base_model=base,
                num_members=1,
                log_weights=(0.0,),
                renyi_alpha=0.0,
                activation=config.activation,
            ),
        )

    return _made(folder / "base", write)


def dropout_samples(adapter: Path, noise: Noise, seed: int) -> Path:
    """Draws of the weights of an adapter that was trained with dropout, beside it, as members that weigh alike.

    A draw goes without some columns of every A, the same for all tokens and rows: it is a model, and one draw judges
    all choices of a row (consistent dropout: Kirsch et al. 2019, arXiv:1906.08158).
    """

    def write(directory: Path) -> None:
        source, manifest = member_dir(adapter, 0), load_manifest(adapter)
        weights = load_file(source / ADAPTER_WEIGHTS)
        dropout = Dropout(noise.rate, torch.Generator().manual_seed(seed))
        for sample in range(noise.samples):
            member = member_dir(directory, sample)
            member.mkdir(parents=True)
            drawn = {name: _drawn(name, weight, dropout) for name, weight in sorted(weights.items())}
            save_file(drawn, member / ADAPTER_WEIGHTS, metadata={"format": "pt"})
            shutil.copyfile(source / ADAPTER_CONFIG, member / ADAPTER_CONFIG)
        uniform = (-math.log(noise.samples),) * noise.samples
        changes = {"num_members": noise.samples, "log_weights": uniform}
        save_manifest(directory, manifest.model_copy(update=changes))

    return _made(adapter.with_name(f"{adapter.name}-{noise.samples}-draws"), write)


def _drawn(name: str, weight: Tensor, dropout: Dropout) -> Tensor:
    if ".lora_A." not in name:
        return weight
    return (weight * dropout.mask(1, weight.shape[1])[0]).contiguous()


def _made(directory: Path, write: Callable[[Path], None]) -> Path:
    """The directory, which appears whole or not at all; what is there already stays."""
    if not directory.exists():
        staged = directory.with_name(f".{directory.name}.staged")
        shutil.rmtree(staged, ignore_errors=True)
        write(staged)
        staged.rename(directory)
    return directory
