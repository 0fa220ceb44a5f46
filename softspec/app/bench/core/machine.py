"""What was measured on what: versions, the machine, the base.

In: nothing, or a base. Out: plain JSON types. Loads no weights.
"""

import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from softspec import __version__


def versions(*packages: str) -> dict[str, str]:
    """Python's, softspec's, and those of installed packages."""
    return {
        "python": platform.python_version(),
        "softspec": __version__,
        **{name: version(name) for name in ("torch", "transformers", "peft", *packages)},
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


def base(path: str) -> dict[str, Any]:
    """Sizes of a base, without loading weights."""
    config = AutoConfig.from_pretrained(path)
    with torch.device("meta"):
        layers = AutoModelForCausalLM.from_config(config)
    return {
        "base": Path(path).name,
        "type": config.model_type,
        "parameters": sum(parameter.numel() for parameter in layers.parameters()),
        "layers": config.num_hidden_layers,
        "hidden_size": config.hidden_size,
        "vocab_size": config.vocab_size,
    }


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
