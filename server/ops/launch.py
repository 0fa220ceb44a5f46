"""`softspec serve`: an ensemble directory becomes the command line and environment of vLLM's own server.

In: ensemble directories, a base model and the user's vLLM flags. Out: a running server; does not return. Checks
what can be checked before the model is loaded. Knows vLLM's flags by name only.
"""

import math
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from softspec.artefact.manifest import Manifest, load_manifest, member_rank
from softspec.engine.start.requirements import SCHEDULER, WORKER_EXTENSION
from softspec.engine.wire import num_columns
from softspec.errors import ConfigError
from softspec.server.chat.unsupported import MAX_TOP_LOGPROBS
from softspec.server.ops.settings import Settings

PLUGIN = "softspec"
# The ranks for which vLLM has LoRA kernels.
_ENGINE_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
# Flags whose other values would take the ensemble apart, and why.
_RESERVED_FLAGS = {
    "--scheduler-cls": "the members need the lockstep scheduler",
    "--worker-extension-cls": "the members need the ensemble sampler",
    "--speculative-config": "speculative decoding is not supported for ensembles",
    "--grpc": "the uncertainty is part of the HTTP answer",
    "--no-enable-lora": "the members are LoRA adapters",
    "--lora-modules": "its adapters would take the members' numbers in the engine",
}
# What vLLM's processes find on a CPU unless the user chose otherwise.
_CPU_ENVIRONMENT = {
    # Runner V2, vLLM's choice on GPUs, needs Triton.
    "VLLM_USE_V2_MODEL_RUNNER": "0",
    # GiB; vLLM would otherwise ask for nine tenths of the machine's memory.
    "VLLM_CPU_KVCACHE_SPACE": "4",
    # Bytes: glibc keeps the memory of logits from step to step instead of asking the system, page by page, again.
    "MALLOC_TRIM_THRESHOLD_": "2000000000",
    "MALLOC_MMAP_THRESHOLD_": "2000000000",
}

_TOO_FEW_CORES = 2
"""With so many cores, or fewer, the model computes on all of them."""


def serve(settings: Settings, base: str | None, vllm_args: Sequence[str]) -> None:
    """Run vLLM's server over the ensembles until it is stopped.

    Args:
        settings: the ensembles and the policy for requests that name none.
        base: the base model's directory or hub id; by default the one that the ensembles name.
        vllm_args: vLLM's own flags; they win over the ones chosen here.
    Raises:
        UserError: an ensemble, the base model or a flag is wrong.
    """
    manifests = {path: load_manifest(path) for path in settings.ensembles}
    arguments = server_arguments(manifests, base, vllm_args)
    os.environ.update(server_environment(settings, os.environ))
    # Imported here: takes many seconds, and must see the environment.
    from softspec.engine.start.serve import run

    run(arguments)


def server_environment(settings: Settings, environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that vLLM's processes must see; vLLM loads endpoint plugins only when they are named."""
    plugins = [name for name in environment.get("VLLM_PLUGINS", "").split(",") if name and name != PLUGIN]
    variables = {**settings.to_environment(), "VLLM_PLUGINS": ",".join([*plugins, PLUGIN])}
    if not torch.cuda.is_available():
        defaults = dict(_CPU_ENVIRONMENT)
        if len(os.sched_getaffinity(0)) <= _TOO_FEW_CORES:
            # vLLM keeps one core for its other processes. Sharing it with them gives a third more tokens.
            defaults["VLLM_CPU_NUM_OF_RESERVED_CPU"] = "0"
        variables |= {name: environment.get(name, value) for name, value in defaults.items()}
    return variables


def server_arguments(
    manifests: Mapping[Path, Manifest], base: str | None, vllm_args: Sequence[str]
) -> list[str]:
    """The arguments after `vllm serve`.

    Args:
        manifests: ensemble directory -> its manifest.
    Raises:
        ConfigError: two ensembles of one name or of different bases, a missing base, or a reserved flag.
    """
    _refuse_reserved_flags(vllm_args)
    _require_distinct_names(manifests)
    model = base or _common_base(manifests)
    _require_base(model)
    on_cpu = not torch.cuda.is_available()
    slots = sum(manifest.num_members for manifest in manifests.values())
    most_members = max(manifest.num_members for manifest in manifests.values())
    rank = max(member_rank(path, manifest) for path, manifest in manifests.items())
    ours: dict[str, str | int] = {
        "--served-model-name": _base_name(model, manifests),
        "--max-loras": slots,
        "--max-lora-rank": engine_rank(rank),
        "--max-logprobs": MAX_TOP_LOGPROBS + num_columns(most_members),
        "--scheduler-cls": SCHEDULER,
        "--worker-extension-cls": WORKER_EXTENSION,
    }
    if (block_size := _kv_block_size(manifests)) is not None:
        ours["--block-size"] = block_size
    if on_cpu:
        # Without AVX-512 float32 is 2-4 times faster than bfloat16 on a CPU.
        ours["--dtype"] = "float32"
    flags = [part for flag, value in ours.items() for part in (flag, str(value))]
    if on_cpu and shutil.which(os.environ.get("CXX", "g++")) is None:
        flags.append("--enforce-eager")  # compiling the model for a CPU needs a C++ compiler
    return [model, "--enable-lora", *flags, *vllm_args]


def engine_rank(rank: int) -> int:
    """The smallest LoRA rank of the engine that holds `rank`.

    Raises:
        ConfigError: the engine has none that large.
    """
    for candidate in _ENGINE_RANKS:
        if candidate >= rank:
            return candidate
    raise ConfigError(
        f"members have LoRA rank {rank} but the engine allows {_ENGINE_RANKS[-1]}: train smaller ones"
    )


def _kv_block_size(manifests: Mapping[Path, Manifest]) -> int | None:
    """KV blocks that end wherever an ensemble's adapters may begin; None leaves the choice to vLLM."""
    sizes = [size for manifest in manifests.values() if (size := manifest.activation.block_size) is not None]
    return math.gcd(*sizes) if sizes else None


def _refuse_reserved_flags(vllm_args: Sequence[str]) -> None:
    for argument in vllm_args:
        flag = argument.partition("=")[0].replace("_", "-")
        if flag in _RESERVED_FLAGS:
            raise ConfigError(
                f"'{flag}' cannot be given to 'softspec serve': {_RESERVED_FLAGS[flag]}; remove it"
            )


def _require_distinct_names(manifests: Mapping[Path, Manifest]) -> None:
    names = [manifest.name for manifest in manifests.values()]
    if len(set(names)) < len(names):
        raise ConfigError(
            f"ensembles are named {names}: expected different names, as models are served by name"
        )


def _common_base(manifests: Mapping[Path, Manifest]) -> str:
    bases = sorted({manifest.base_model.path for manifest in manifests.values()})
    if len(bases) > 1:
        raise ConfigError(
            f"ensembles have different bases {bases}: expected one; serve them apart or give --base"
        )
    return bases[0]


def _require_base(model: str) -> None:
    """A hub id has at most one slash and does not start like a path; anything else must exist here."""
    looks_like_path = model.startswith((".", "/", "~")) or model.count("/") > 1
    if looks_like_path and not Path(model).is_dir():
        raise ConfigError(f"base model '{model}' does not exist: give its directory with --base PATH")


def _base_name(model: str, manifests: Mapping[Path, Manifest]) -> str:
    """The base's served name: short, unless an ensemble has that name already."""
    short = Path(model).name
    return model if short in {manifest.name for manifest in manifests.values()} else short
