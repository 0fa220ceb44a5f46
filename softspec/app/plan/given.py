"""From what is asked on the command line to a `Case`: files are read, flags are checked.

In: a base or an ensemble directory, and what of it is planned otherwise. Out: a case, and the room on its device.
"""

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from softspec.app.plan.base import Base, read_base
from softspec.app.plan.case import MODULES, Case, Ensemble, Load, chosen_layers
from softspec.app.plan.device import DEVICES, GIB, Device
from softspec.app.plan.memory import CPU_KV_BYTES, Room
from softspec.artefact.activation import DEFAULT_BLOCK_SIZE
from softspec.artefact.manifest import adapter_config, load_manifest, member_rank
from softspec.errors import ConfigError

Layers = tuple[int, ...] | str
DEFAULT_MEMBERS, DEFAULT_RANK = 4, 16


@dataclass(frozen=True)
class Wanted:
    """What the ensemble is to be; None is as its directory says, or a default."""

    members: int | None = None
    rank: int | None = None
    layers: Layers | None = None
    activation: Literal["block", "always"] | None = None


@dataclass(frozen=True)
class Machine:
    """A device by name, and what is said otherwise of it; None is as in the table."""

    name: str
    memory_gib: float | None = None
    bandwidth_gbs: float | None = None
    tflops: float | None = None
    kv_gib: float | None = None

    @property
    def device(self) -> Device:
        device = DEVICES[self.name]
        if self.memory_gib is None and self.bandwidth_gbs is None and self.tflops is None:
            return device
        return replace(
            device,
            memory=device.memory if self.memory_gib is None else int(self.memory_gib * GIB),
            bandwidth=device.bandwidth if self.bandwidth_gbs is None else self.bandwidth_gbs * 1e9,
            flops=device.flops if self.tflops is None else self.tflops * 1e12,
            source=f"given; else {device.source}",
        )

    @property
    def room(self) -> Room:
        """The device's memory; this machine's for a CPU, on which the KV cache has a size of its own."""
        device = self.device
        total = device.memory or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        default = CPU_KV_BYTES if device.is_cpu else None
        return Room(total, default if self.kv_gib is None else int(self.kv_gib * GIB))


def case_of(directory: Path | None, base: str | None, wanted: Wanted, load: Load, machine: Machine) -> Case:
    """What is planned.

    Args:
        directory: an ensemble; None plans one that is not there yet.
        base: its base; None is the one that the ensemble names.
    Raises:
        ConfigError: neither is given, or a number means nothing.
        ManifestError: the directory is no ensemble.
    """
    if directory is None and base is None:
        raise ConfigError("found nothing to plan: give an ensemble directory, or --base with a checkpoint")
    _require_sense(load, machine)
    found, place = (
        (Ensemble(DEFAULT_MEMBERS, DEFAULT_RANK, ()), "") if directory is None else _read(directory)
    )
    model = read_base(base or place)
    ensemble = replace(
        found,
        members=found.members if wanted.members is None else wanted.members,
        rank=found.rank if wanted.rank is None else wanted.rank,
        layers=_layers(wanted.layers or found.layers or "all", model),
        block_size=_block_size(wanted.activation, found.block_size, directory is None),
    )
    if ensemble.members < 1 or ensemble.rank < 1:
        raise ConfigError(f"{ensemble.members} members of rank {ensemble.rank}: expected at least 1 of each")
    return Case(model, ensemble, load, machine.device)


def _read(directory: Path) -> tuple[Ensemble, str]:
    """An ensemble directory's numbers, and its base; no layers are all of them."""
    manifest = load_manifest(directory)
    config = adapter_config(directory, 0)
    layers, modules = config.get("layers_to_transform"), config.get("target_modules")
    if not isinstance(modules, list) or not set(modules) <= set(MODULES):
        raise ConfigError(
            f"'{directory}' adapts {modules}: only adapters of {', '.join(MODULES)} are planned"
        )
    ensemble = Ensemble(
        members=manifest.num_members,
        rank=member_rank(directory, manifest),
        layers=tuple(sorted([layers] if isinstance(layers, int) else layers or ())),
        modules=tuple(module for module in MODULES if module in modules),
        block_size=manifest.activation.block_size,
    )
    return ensemble, manifest.base_model.path


def _layers(wanted: Layers, base: Base) -> tuple[int, ...]:
    layers = chosen_layers(wanted, base.layers)
    if not 0 <= layers[0] <= layers[-1] < base.layers:
        raise ConfigError(
            f"adapters in layers {layers[0]} to {layers[-1]}: '{base.name}' has 0 to {base.layers - 1}"
        )
    return layers


def _block_size(activation: str | None, found: int | None, is_new: bool) -> int | None:
    if activation == "always":
        return None
    return (found or DEFAULT_BLOCK_SIZE) if activation or is_new else found


def _require_sense(load: Load, machine: Machine) -> None:
    if not 1 <= load.output < load.context:
        raise ConfigError(
            f"--context is {load.context} and --output-tokens {load.output}: expected at least one token of prompt and "
            "one of answer"
        )
    if load.users < 1:
        raise ConfigError(f"--concurrency is {load.users}: expected at least 1")
    for flag in ("memory_gib", "bandwidth_gbs", "tflops", "kv_gib"):
        value = getattr(machine, flag)
        if value is not None and not value > 0:
            raise ConfigError(f"--{flag.replace('_', '-')} is {value}: expected more than 0")
