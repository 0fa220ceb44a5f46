"""The ensemble that is measured, on its base; plain JSON types."""

import re
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from softspec.app.bench.core.machine import base as describe_base
from softspec.artefact.manifest import Manifest, member_dir, member_rank


def model(base: str, ensemble: Path, manifest: Manifest) -> dict[str, Any]:
    """Sizes of the base and of one adapter, without loading weights."""
    with safe_open(member_dir(ensemble, 0) / "adapter_model.safetensors", "pt") as adapter:
        names = list(adapter.keys())
        sizes = [torch.Size(adapter.get_slice(name).get_shape()).numel() for name in names]
    return {
        **describe_base(base),
        "members": manifest.num_members,
        "rank": member_rank(ensemble, manifest),
        "adapted_layers": sorted(
            {int(found[1]) for name in names if (found := re.search(r"\.(\d+)\.", name))}
        ),
        "parameters_per_adapter": sum(sizes),
        "weights_rule": manifest.weights_rule,
        "activation": manifest.activation.model_dump(),
    }
