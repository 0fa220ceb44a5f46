"""What every member adapts: which linear layers, in which decoder layers, at which rank.

In: a model, with or without weights, and the configured names. Out: a `LoraSpec`. Changes no model.
"""

import math
from dataclasses import dataclass

from torch import nn

from softspec.errors import ConfigError


@dataclass(frozen=True)
class LoraSpec:
    """Low-rank updates of linear layers, which are known by the last part of their name, in these decoder layers."""

    rank: int
    lora_alpha: float
    target_modules: tuple[str, ...]
    layers: tuple[int, ...]

    def targets(self, model: nn.Module) -> list[tuple[str, nn.Linear]]:
        """Full name and module of every linear layer to adapt, in model order."""
        layers = decoder_layers(model)
        wanted = {
            id(module)
            for index in self.layers
            for name, module in _linears(layers[index])
            if name.rpartition(".")[2] in self.target_modules
        }
        return [(name, module) for name, module in _linears(model) if id(module) in wanted]


def resolve_spec(
    model: nn.Module,
    rank: int,
    lora_alpha: float,
    target_modules: tuple[str, ...] | str,
    layers_to_transform: tuple[int, ...] | str,
) -> LoraSpec:
    """Fit the configured names to a model; weights may be on the meta device.

    Args:
        target_modules: names, or `all-linear`.
        layers_to_transform: numbers, `all` or `top_third`.
    Raises:
        ConfigError: a module that is no linear layer of the decoder, or a layer number out of range.
    """
    layers = decoder_layers(model)
    known = sorted({name.rpartition(".")[2] for layer in layers for name, _ in _linears(layer)})
    modules = tuple(known) if isinstance(target_modules, str) else tuple(sorted(set(target_modules)))
    for module in modules:
        if module not in known:
            raise ConfigError(f"unknown target module '{module}': expected some of {', '.join(known)}")
    count = len(layers)
    if layers_to_transform == "all":
        chosen = tuple(range(count))
    elif layers_to_transform == "top_third":
        chosen = tuple(range(count - math.ceil(count / 3), count))
    else:
        chosen = tuple(sorted({int(layer) for layer in layers_to_transform}))
    if not 0 <= chosen[0] <= chosen[-1] < count:
        raise ConfigError(f"layers_to_transform has {list(chosen)}, expected numbers from 0 to {count - 1}")
    return LoraSpec(rank, lora_alpha, modules, chosen)


def what_is_adapted(spec: LoraSpec, model: nn.Module) -> str:
    """One line about what a spec comes to in a model, and what of a mixture of experts it leaves out."""
    targets = spec.targets(model)
    weights = sum(spec.rank * (module.in_features + module.out_features) for _, module in targets)
    layers = decoder_layers(model)
    experts = sum(weight.numel() for weight in layers.parameters() if weight.dim() == 3)
    left_out = f"; the {experts:,} weights of its experts get none" if experts else ""
    return (
        f"each member adapts {', '.join(spec.target_modules)} in {len(spec.layers)} of {len(layers)} layers: "
        f"{len(targets)} modules, {weights:,} weights{left_out}"
    )


def decoder_layers(model: nn.Module) -> nn.ModuleList:
    """The decoder blocks of a causal language model.

    Raises:
        ConfigError: an architecture without `model.layers`.
    """
    layers = getattr(getattr(model, "model", None), "layers", None)
    if not isinstance(layers, nn.ModuleList):
        raise ConfigError(
            f"{type(model).__name__} is not supported: expected a causal language model with `model.layers`"
        )
    return layers


def _linears(layer: nn.Module) -> list[tuple[str, nn.Linear]]:
    return [(name, module) for name, module in layer.named_modules() if isinstance(module, nn.Linear)]
