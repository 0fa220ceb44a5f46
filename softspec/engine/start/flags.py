"""vLLM's flags and environment for ensembles: what `vllm serve` must be told, and what it may not be told.

In: manifests, the ranks of their adapters, the user's own flags and variables, and what the machine has. Out: flags and
variables. Pure functions over vLLM's names for things; imports neither vllm nor torch, so a wrong flag is refused at
once.
"""

import math
from collections.abc import Collection, Mapping, Sequence

from softspec.artefact.manifest import Manifest
from softspec.engine.requirements import SCHEDULER, WORKER_EXTENSION
from softspec.engine.wire import MAX_WATCHED, num_columns
from softspec.errors import ConfigError

# The ranks for which vLLM has LoRA kernels.
_ENGINE_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
# Flags whose other values would take the ensemble apart, and why.
_RESERVED_FLAGS = {
    "--scheduler-cls": "the members need the lockstep scheduler",
    "--worker-extension-cls": "the members need the ensemble sampler",
    "--speculative-config": "speculative decoding is not supported for ensembles",
    "--grpc": "the uncertainty is part of the HTTP answer",
    "--headless": "the HTTP server runs beside its engine",
    "--api-server-count": "one HTTP server answers for one engine; add replicas instead",
    "--no-enable-lora": "the members are LoRA adapters",
    "--lora-modules": "its adapters would take the members' numbers in the engine",
    "--shutdown-timeout": "its name here is --drain-timeout",
}
# How the flags begin that only vLLM's own HTTP server reads.
_LISTENING_FLAGS = (
    "--host",
    "--port",
    "--uds",
    "--root-path",
    "--ssl-",
    "--enable-ssl-refresh",
    "--uvicorn-log-level",
    "--disable-uvicorn-access-log",
    "--h11-",
)
CONTENT_FLAGS = ("--enable-log-requests", "--enable-log-outputs")
"""Flags by which vLLM logs what requests ask and are answered."""
_CONTENT_VARIABLE = "VLLM_DEBUG_LOG_API_SERVER_RESPONSE"
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


def engine_flags(manifests: Collection[Manifest], rank: int, num_top: int) -> list[str]:
    """The flags of an engine that has room for every member of every ensemble, and schedules them in lockstep.

    Args:
        rank: the largest LoRA rank among the adapters.
        num_top: how many likeliest tokens a caller may ask for beside each drawn one.
    Raises:
        ConfigError: the engine allows no rank that large.
    """
    most_members = max(manifest.num_members for manifest in manifests)
    values: dict[str, str | int] = {
        "--max-loras": sum(manifest.num_members for manifest in manifests),
        "--max-lora-rank": engine_rank(rank),
        # Who watches tokens, to score options, asks for no likeliest ones.
        "--max-logprobs": max(
            num_top + num_columns(most_members), num_columns(most_members, num_watched=MAX_WATCHED)
        ),
        # Training tokenises with transformers; where a base brings Mistral's own tokenizer too, vLLM would take that.
        "--tokenizer-mode": "hf",
        "--scheduler-cls": SCHEDULER,
        "--worker-extension-cls": WORKER_EXTENSION,
    }
    if (block_size := _kv_block_size(manifests)) is not None:
        values["--block-size"] = block_size
    return ["--enable-lora", *(part for flag, value in values.items() for part in (flag, str(value)))]


def cpu_flags(has_compiler: bool) -> list[str]:
    """The flags of an engine that computes on a CPU; compiling the model for one needs a C++ compiler."""
    # Without AVX-512 float32 is 2-4 times faster than bfloat16 on a CPU.
    return ["--dtype", "float32", *(() if has_compiler else ("--enforce-eager",))]


def cpu_environment(environment: Mapping[str, str], num_cores: int) -> dict[str, str]:
    """The variables of an engine that computes on a CPU; those that the user has set win."""
    defaults = dict(_CPU_ENVIRONMENT)
    if num_cores <= _TOO_FEW_CORES:
        # vLLM keeps one core for its other processes. Sharing it with them gives a third more tokens.
        defaults["VLLM_CPU_NUM_OF_RESERVED_CPU"] = "0"
    return {name: environment.get(name, value) for name, value in defaults.items()}


def refuse_reserved_flags(vllm_args: Sequence[str]) -> None:
    """Raise if the user's own flags would take ensembles apart.

    Raises:
        ConfigError: one of them would; the message says why.
    """
    for argument in vllm_args:
        flag = _flag_of(argument)
        if flag in _RESERVED_FLAGS:
            raise ConfigError(
                f"'{flag}' cannot be given to 'softspec serve': {_RESERVED_FLAGS[flag]}; remove it"
            )


def refuse_listening_flags(vllm_args: Sequence[str]) -> None:
    """Raise if the user's own flags are for an HTTP server that is not vLLM's.

    Raises:
        ConfigError: one of them is.
    """
    for argument in vllm_args:
        flag = _flag_of(argument)
        if flag.startswith(_LISTENING_FLAGS):
            raise ConfigError(
                f"'{flag}' is for vLLM's own HTTP server, which does not run here: remove it, and tell the other one"
            )


def refuse_logged_content(vllm_args: Sequence[str], environment: Mapping[str, str]) -> None:
    """Raise if vLLM is told to log prompts or answers.

    Raises:
        ConfigError: by a flag or by a variable, which the message names.
    """
    given = {argument.replace("_", "-") for argument in vllm_args}
    is_on = environment.get(_CONTENT_VARIABLE, "").lower() == "true"
    named = [flag for flag in CONTENT_FLAGS if flag in given] + [_CONTENT_VARIABLE] * is_on
    if named:
        raise ConfigError(
            f"{named[0]} logs prompts and answers, which this server does not: remove it, or give --log-content too"
        )


def without_given(flags: Sequence[str], vllm_args: Sequence[str]) -> list[str]:
    """These flags with their values, but for those that the user gives too; vLLM warns of what is there twice."""
    given = {_flag_of(argument) for argument in vllm_args if argument.startswith("-")}
    kept: list[str] = []
    is_kept = True
    for word in flags:
        if word.startswith("-"):
            is_kept = word not in given
        if is_kept:
            kept.append(word)
    return kept


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


def _flag_of(argument: str) -> str:
    """The flag of an argument that may hold its value too."""
    return argument.partition("=")[0].replace("_", "-")


def _kv_block_size(manifests: Collection[Manifest]) -> int | None:
    """KV blocks that end wherever an ensemble's adapters may begin; None leaves the choice to vLLM."""
    sizes = [size for manifest in manifests if (size := manifest.activation.block_size) is not None]
    return math.gcd(*sizes) if sizes else None
