"""What was measured on what: versions, the machine, the model; plain JSON types."""

import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM

from softspec.manifest import Manifest, member_dir, member_rank


def versions() -> dict[str, str]:
    """vLLM tells its own when it runs."""
    return {
        "python": platform.python_version(),
        **{name: version(name) for name in ("softspec", "torch", "transformers", "peft")},
    }


def machine() -> dict[str, Any]:
    """`load_1m` is what else kept the machine busy at the start: it should be near 0."""
    usable = len(os.sched_getaffinity(0))
    return {
        "cpu": _cpu_model(),
        "cpu_instructions": torch.backends.cpu.get_cpu_capability(),
        "logical_cores": usable,
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": platform.platform(),
        "load_1m": round(os.getloadavg()[0], 2),
    }


def model(base: str, ensemble: Path, manifest: Manifest) -> dict[str, Any]:
    """Sizes of the base and of one adapter, without loading weights."""
    config = AutoConfig.from_pretrained(base)
    with torch.device("meta"):
        layers = AutoModelForCausalLM.from_config(config)
    with safe_open(member_dir(ensemble, 0) / "adapter_model.safetensors", "pt") as adapter:
        sizes = [torch.Size(adapter.get_slice(name).get_shape()).numel() for name in adapter.keys()]  # noqa: SIM118
    return {
        "base": Path(base).name,
        "type": config.model_type,
        "parameters": sum(parameter.numel() for parameter in layers.parameters()),
        "layers": config.num_hidden_layers,
        "hidden_size": config.hidden_size,
        "vocab_size": config.vocab_size,
        "members": manifest.num_members,
        "rank": member_rank(ensemble, manifest),
        "parameters_per_adapter": sum(sizes),
        "weights_rule": manifest.weights_rule,
        "activation": manifest.activation.model_dump(),
    }


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
