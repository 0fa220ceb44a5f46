"""Whether an adapter's weights are whole, finite, and fit a base.

In: an adapter's folder and a base's. Out: nothing, or an error that names the tensor. Reads no weights of the base.

An engine copies a smaller matrix into a corner of the larger one and passes over layers that it does not have, so a
stranger's adapter would be served without a word.
"""

import json
import re
from collections.abc import Collection, Iterable
from pathlib import Path

from safetensors import SafetensorError, safe_open

from softspec.errors import ManifestError

_LORA = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<side>[AB])(\.\w+)?\.weight")
_DECODER_LAYER = re.compile(r"\.layers\.(\d+)\.")
_PLAIN = {"F64", "F32", "F16", "BF16"}
"""Weights of other types are packed: their shape is not the layer's."""

Shape = tuple[int, ...]


def require_fit(adapter: Path, base: Path) -> None:
    """Raise unless a member's adapter is a whole file of numbers whose matrices have the shapes of the base's layers.

    A base without plain safetensors, or whose layers have other names in its files, is not compared.

    Raises:
        ManifestError: the file is cut off, has a NaN or an infinity in it, or belongs to another base.
    """
    path = adapter / "adapter_model.safetensors"
    found, layers = _products(path), _layers(base)
    _require_finite(path)
    complaints = (
        *(
            f"'{module}' is {_told(shape)}, expected {_told(layers[module])}"
            for module, shape in found.items()
            if module in layers and sorted(shape) != sorted(layers[module])
        ),
        *(f"the base has no '{module}'" for module in _of_known_kinds(found, layers)),
        *(
            f"it has nothing for '{module}'"
            for module in _of_known_kinds(layers, found)
            if _is_for_all(adapter)
        ),
    )
    for complaint in complaints:
        raise ManifestError(f"'{path}' does not fit the base: {complaint}; serve the base of its training")


def lowest_layer(adapter: Path) -> int:
    """The lowest decoder layer, from 0, in which an adapter acts; 0 where the names of its tensors do not say.

    Raises:
        ManifestError: the file is cut off or no safetensors file.
    """
    names = [name for name in _tensors(adapter / "adapter_model.safetensors") if ".lm_head." not in name]
    found = [_DECODER_LAYER.search(name) for name in names]
    return min((int(match[1]) if match else 0 for match in found), default=0)


def _of_known_kinds(modules: Iterable[str], others: Collection[str]) -> list[str]:
    """The modules that `others` lack, although they have the like of them elsewhere."""
    kinds = {_kind(module) for module in others}
    return [module for module in modules if module not in others and _kind(module) in kinds]


def _is_for_all(adapter: Path) -> bool:
    """Whether an adapter is for all layers that have modules of its names."""
    config = json.loads((adapter / "adapter_config.json").read_bytes())
    targets = config.get("target_modules")
    chosen = any(config.get(key) is not None for key in ("layers_to_transform", "exclude_modules"))
    return not chosen and isinstance(targets, list) and not any("." in target for target in targets)


def _products(path: Path) -> dict[str, Shape]:
    """The shape of B A for every layer that has an adapter."""
    sides: dict[str, dict[str, Shape]] = {}
    for name, (shape, _) in _tensors(path).items():
        if (match := _LORA.fullmatch(name)) and len(shape) == 2:
            sides.setdefault(match["module"], {})[match["side"]] = shape
    for module, pair in sides.items():
        if set(pair) != {"A", "B"} or pair["A"][0] != pair["B"][1]:
            raise ManifestError(f"'{path}': '{module}' has no pair of LoRA matrices; train it again")
    return {module: (pair["B"][0], pair["A"][1]) for module, pair in sides.items()}


def _require_finite(path: Path) -> None:
    """Raise if a weight is no number: what it makes of a prompt would stay in the engine's cache."""
    with safe_open(path, "pt") as file:
        for name in file.keys():  # noqa: SIM118  not a mapping
            if not file.get_tensor(name).isfinite().all():
                raise ManifestError(f"'{path}': '{name}' has NaN or infinite weights; train it again")


def _layers(base: Path) -> dict[str, Shape]:
    """The shape of every matrix of the base."""
    return {
        name.removesuffix(".weight"): shape
        for path in sorted(base.glob("*.safetensors"))
        for name, (shape, kind) in _tensors(path).items()
        if name.endswith(".weight") and len(shape) == 2 and kind in _PLAIN
    }


def _tensors(path: Path) -> dict[str, tuple[Shape, str]]:
    try:
        with safe_open(path, "np") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118  not a mapping
            return {name: (tuple(part.get_shape()), part.get_dtype()) for name, part in slices.items()}
    except (SafetensorError, OSError) as error:
        reason = " ".join(str(error).split())
        raise ManifestError(
            f"'{path}' cannot be read ({reason}): it is cut off or no safetensors file"
        ) from error


def _kind(module: str) -> str:
    """What layers of all depths have in common."""
    return re.sub(r"\d+", "*", module)


def _told(shape: Iterable[int]) -> str:
    return " x ".join(map(str, shape))
