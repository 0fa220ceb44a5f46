"""What a vLLM engine must be before an ensemble may be served on it, checked at start-up and whenever one is loaded.

Which options may be given at all is `options`; here is what they come to.

In: vLLM's configuration and version, however it was started. Out: nothing, or a named error with the flag that
helps. Reads attributes only; imports no vllm.
"""

import logging
import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Protocol

from softspec.artefact.manifest import Manifest
from softspec.engine.wire import num_columns
from softspec.errors import ConfigError, UnsupportedEngineError

if TYPE_CHECKING:
    from vllm.config import VllmConfig

TESTED_VERSIONS = ("0.32.0",)
SCHEDULER = "softspec.engine.core.scheduler.LockstepScheduler"
WORKER_EXTENSION = "softspec.engine.worker.install.EnsembleWorker"
_KV_BLOCK, _CPU_KV_BLOCK = 16, 32
"""vLLM's attention kernels take KV blocks of multiples of so many tokens."""

_log = logging.getLogger(__name__)


class LoadedEnsemble(Protocol):
    """An ensemble, as far as the requirements look at one."""

    @property
    def manifest(self) -> Manifest: ...

    @property
    def rank(self) -> int: ...


def require_engine(version: str, config: "VllmConfig", ensembles: Iterable[LoadedEnsemble]) -> None:
    """Raise unless this vLLM, with this `VllmConfig`, can serve these ensembles.

    Raises:
        UnsupportedEngineError: a version or an option that was not tested.
        ConfigError: an engine too small for a member; the message names the flag.
    """
    if version.partition("+")[0] not in TESTED_VERSIONS:
        raise UnsupportedEngineError(
            f"vLLM {version} was not tested with softspec: install {' or '.join(TESTED_VERSIONS)}"
        )
    _refuse_what_parts_a_group(config)
    _refuse_several_caches(config)
    _require_class(config.scheduler_config.scheduler_cls, SCHEDULER, "--scheduler-cls")
    _require_class(config.parallel_config.worker_extension_cls, WORKER_EXTENSION, "--worker-extension-cls")
    if config.lora_config is None:
        raise ConfigError("LoRA is off but the members are LoRA adapters: start vLLM with --enable-lora")
    ensembles = list(ensembles)
    _require_residence(config, sum(ensemble.manifest.num_members for ensemble in ensembles))
    for ensemble in ensembles:
        _require_room(config, ensemble)
        _require_cache(config, ensemble.manifest)
        _require_shared_blocks(config, ensemble.manifest)


def require_base(served: str | None, manifests: Iterable[Manifest]) -> None:
    """Raise unless the ensembles were trained on the base that is served; its fingerprint is None if unchecked.

    Raises:
        ConfigError: one was trained on another base.
    """
    if served is None:
        return
    for manifest in manifests:
        base = manifest.base_model
        if base.fingerprint is None:
            _log.warning("ensemble '%s' does not say on which base it was trained: unchecked", manifest.name)
        elif base.fingerprint != served:
            revision = f" at revision '{base.revision}'" if base.revision else ""
            raise ConfigError(
                f"ensemble '{manifest.name}' was trained on a base with fingerprint {base.fingerprint[:12]} "
                f"('{base.path}'{revision}) but {served[:12]} is served: its weights, tokenizer or template are "
                "others, as in another revision or format; serve its own base, or take the risk with --base-unchecked"
            )


def _refuse_what_parts_a_group(config: "VllmConfig") -> None:
    """Raise if an option, given or chosen by vLLM, would let the rows of one request come apart, or wait for ever."""
    scheduling, parallel = config.scheduler_config, config.parallel_config
    found = (
        ("speculative decoding", config.speculative_config is not None, "remove --speculative-config"),
        ("KV transfer", config.kv_transfer_config is not None, "remove --kv-transfer-config"),
        (
            "a limit on the tokens of long prompts in a step",
            scheduling.long_prefill_token_threshold > 0,
            "remove --long-prefill-token-threshold",
        ),
        (
            "batch-sharded sampling",
            parallel.enable_batch_sharded_sampling,
            "remove --enable-batch-sharded-sampling",
        ),
        (
            "pipeline parallelism",
            parallel.pipeline_parallel_size > 1,
            "remove --pipeline-parallel-size; --tensor-parallel-size works",
        ),
        (
            "data parallelism",
            parallel.data_parallel_size > 1,
            "remove --data-parallel-size; run one server for each replica behind a load balancer",
        ),
        (
            "context parallelism",
            max(parallel.prefill_context_parallel_size, parallel.decode_context_parallel_size) > 1,
            "remove --prefill-context-parallel-size and --decode-context-parallel-size",
        ),
        ("priority scheduling", scheduling.policy != "fcfs", "start vLLM with --scheduling-policy fcfs"),
        ("a KV cache watermark", scheduling.watermark > 0, "remove --watermark"),
    )
    for option, is_on, remedy in found:
        if is_on:
            raise UnsupportedEngineError(f"{option} is on, which ensembles do not work with: {remedy}")


def _refuse_several_caches(config: "VllmConfig") -> None:
    """Raise if layers attend in different ways, so that a row would have several tables of blocks."""
    kinds = sorted(set(getattr(config.model_config.hf_text_config, "layer_types", None) or ()))
    if len(kinds) > 1:
        raise UnsupportedEngineError(
            f"the base has layers of several kinds ({', '.join(kinds)}): expected one kind of attention cache, as "
            "with full attention in every layer; take another base"
        )


def _require_residence(config: "VllmConfig", num_adapters: int) -> None:
    """Raise unless every adapter can stay: one that is pushed out is read again from its path, where others may lie."""
    limit = config.lora_config.max_cpu_loras
    if limit < num_adapters:
        raise ConfigError(
            f"the ensembles have {num_adapters} members but the engine keeps {limit} adapters: start it with "
            f"--max-loras {num_adapters}, or with --max-cpu-loras {num_adapters} and they take turns"
        )


def _require_class(found: str | type | None, expected: str, flag: str) -> None:
    name = f"{found.__module__}.{found.__qualname__}" if isinstance(found, type) else found
    if name != expected:
        raise UnsupportedEngineError(f"{flag} is {found or 'not set'}: expected {expected}")


def _require_room(config: "VllmConfig", ensemble: LoadedEnsemble) -> None:
    manifest = ensemble.manifest
    # While a shared prompt is computed it takes a run slot of its own.
    rows = manifest.num_members + (manifest.activation.block_size is not None)
    needs = (
        ("LoRA rank", ensemble.rank, config.lora_config.max_lora_rank, "--max-lora-rank"),
        ("members", manifest.num_members, config.lora_config.max_loras, "--max-loras"),
        ("rows", rows, config.scheduler_config.max_num_seqs, "--max-num-seqs"),
        ("rows", rows, _active(config), "--max-num-active-seqs"),
        (
            "log-probability columns",
            # Options are scored by watching at least one token at a time.
            num_columns(manifest.num_members, num_watched=1),
            config.model_config.max_logprobs,
            "--max-logprobs",
        ),
    )
    for what, need, limit, flag in needs:
        # vLLM reads max_logprobs -1 as no limit.
        if 0 <= limit < need:
            raise ConfigError(
                f"ensemble '{manifest.name}' has {need} {what} but the engine allows {limit}: "
                f"start it with {flag} {need}"
            )


def _active(config: "VllmConfig") -> int:
    limit = config.scheduler_config.max_num_active_seqs
    return config.scheduler_config.max_num_seqs if limit is None else limit


def _require_cache(config: "VllmConfig", manifest: Manifest) -> None:
    """Raise unless the longest request fits into the KV cache with all its rows, or it could never finish."""
    cache = config.cache_config
    if not cache.num_gpu_blocks or not cache.block_size:
        return  # not known before the engine runs
    blocks_per_row = math.ceil(config.model_config.max_model_len / cache.block_size)
    # One block is vLLM's own, one belongs to the row that computes a shared prompt.
    fitting = (cache.num_gpu_blocks - 2) // manifest.num_members
    if blocks_per_row > fitting:
        raise ConfigError(
            f"the KV cache has room for {fitting * cache.block_size} tokens of each of the {manifest.num_members} "
            f"members of '{manifest.name}' but requests may have {config.model_config.max_model_len}: start it with "
            f"--max-model-len {fitting * cache.block_size}, or with a larger cache"
        )


def _require_shared_blocks(config: "VllmConfig", manifest: Manifest) -> None:
    """Raise unless members can share cached KV blocks of their prompt, which must end where the adapters begin."""
    cache, active_from = config.cache_config, manifest.activation.block_size
    if active_from is None:
        return
    if not cache.enable_prefix_caching:
        raise ConfigError(
            f"prefix caching is off but the members of '{manifest.name}' share their prompt through it: "
            "start it with --enable-prefix-caching"
        )
    told = f"ensemble '{manifest.name}' activates its adapters at multiples of {active_from} tokens but "
    unit = _CPU_KV_BLOCK if config.device_config.device_type == "cpu" else _KV_BLOCK
    if active_from % unit:
        raise ConfigError(
            f"{told}KV blocks have multiples of {unit} on this device: train it with such an activation.block_size"
        )
    if cache.block_size is not None and (active_from % cache.block_size or cache.block_size % unit):
        raise ConfigError(
            f"{told}the engine's KV blocks have {cache.block_size}: start it with --block-size {active_from}"
        )
