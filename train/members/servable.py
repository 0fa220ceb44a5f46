"""Whether an engine can serve what is about to be trained: vLLM's limits, from the base's configuration alone.

In: a `TrainConfig` and the base's skeleton. Out: an error, or lines for the user. Imports no vllm, which need not be
there; a test compares the numbers with it.
"""

from torch import nn
from transformers import DynamicCache
from transformers.cache_utils import DynamicSlidingWindowLayer, LinearAttentionCacheLayerMixin

from softspec.errors import ConfigError
from softspec.train.config import TrainConfig

LARGEST_RANK = 512
"""The largest LoRA rank that vLLM has kernels for."""
KV_BLOCK, CPU_KV_BLOCK = 16, 32
"""vLLM's KV blocks have a multiple of so many tokens, on GPUs and on CPUs."""


def check_servable(config: TrainConfig, skeleton: nn.Module) -> list[str]:
    """Lines about what serving will need.

    Raises:
        ConfigError: no engine could serve the ensemble, or members could not share a prompt in training.
    """
    if config.lora_r > LARGEST_RANK:
        raise ConfigError(
            f"lora_r is {config.lora_r}, but vLLM serves LoRA ranks up to {LARGEST_RANK}; lower it"
        )
    block_size = config.activation.block_size
    if block_size is not None and block_size % KV_BLOCK:
        raise ConfigError(
            f"activation.block_size is {block_size}, expected a multiple of {KV_BLOCK}, as vLLM's KV blocks are "
            f"(of {CPU_KV_BLOCK} to serve on CPUs too)"
        )
    remarks = []
    if block_size is not None and block_size % CPU_KV_BLOCK:
        remarks.append(
            f"activation.block_size is {block_size}, no multiple of {CPU_KV_BLOCK}: the ensemble can be served on GPUs "
            "but not on CPUs"
        )
    return remarks + _about_caches(config, skeleton)


def _about_caches(config: TrainConfig, skeleton: nn.Module) -> list[str]:
    base = f"base_model '{config.base_model}' ({type(skeleton).__name__})"
    kinds = cache_kinds(skeleton)
    if "state" in kinds:
        if config.activation.block_size is not None:
            raise ConfigError(
                f"{base} remembers a prompt by more than attention, so members cannot share it; "
                "set activation: {kind: always}"
            )
        return [
            f"{base} remembers a prompt by more than attention: 'softspec serve' will refuse the ensemble, though PEFT "
            "can use its members"
        ]
    if len(kinds) > 1:
        return [
            f"{base} has several kinds of attention cache ({', '.join(sorted(kinds))}): serve the ensemble with "
            "--disable-hybrid-kv-cache-manager"
        ]
    return []


def cache_kinds(skeleton: nn.Module) -> set[str]:
    """How the layers of a model remember a prompt: `full`, `window of N` for attention, `state` for all else."""
    if getattr(skeleton, "_is_stateful", False):
        return {"state"}
    try:
        layers = DynamicCache(config=skeleton.config).layers
    except KeyError:  # a kind of layer that transformers' own cache does not know
        return {"state"}
    return {_kind(layer) for layer in layers} or {"full"}


def _kind(layer: object) -> str:
    if isinstance(layer, LinearAttentionCacheLayerMixin):
        return "state"
    return f"window of {layer.sliding_window}" if isinstance(layer, DynamicSlidingWindowLayer) else "full"
