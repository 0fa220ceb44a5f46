"""Which of vLLM's engine options were tested with ensembles; every other one is refused where it is not at its default.

In: vLLM's engine arguments as they were given, and fresh ones. Out: nothing, or an error that names each flag. What the
options of an engine turn into, and whether it is large enough, is `requirements`. Imports no vllm.

Options are judged as they are given, not as vLLM resolves them: many values in its configuration follow from the model
and the platform, and nobody chose them.
"""

import logging
from dataclasses import fields, is_dataclass
from typing import Any

from softspec.errors import UnsupportedEngineError

TESTED_OPTIONS = {
    "model": "the base",
    "revision": "of the base",
    "code_revision": "of the base's own code",
    "trust_remote_code": "the base's own code",
    "served_model_name": "names of the base",
    "hf_token": "how the base is fetched",
    "download_dir": "how the base is fetched",
    "safetensors_load_strategy": "how weights are read",
    "use_tqdm_on_load": "how weights are read",
    "dtype": "float32 and bfloat16",
    "seed": "of the base's requests; ensembles draw with their own",
    "enforce_eager": "compiled and not",
    "tensor_parallel_size": "by reading, not by running: every worker mixes the same logits",
    "max_model_len": "checked: the longest request must fit with all its rows",
    "max_num_seqs": "checked: at least the rows of one request",
    "max_num_active_seqs": "checked: at least the rows of one request",
    "max_num_batched_tokens": "prompts in chunks of any size",
    "max_logprobs": "checked: the columns of the telemetry",
    "block_size": "checked: must divide the ensemble's blocks",
    "disable_hybrid_kv_cache_manager": "one cache for windows and full attention",
    "enable_prefix_caching": "checked: needed by block activation",
    "gpu_memory_utilization": "size of the KV cache",
    "kv_cache_memory_bytes": "size of the KV cache",
    "num_gpu_blocks_override": "size of the KV cache",
    "enable_lora": "set by softspec",
    "max_loras": "checked: the members of one request",
    "max_cpu_loras": "checked: the members of all ensembles",
    "max_lora_rank": "checked: the members' rank",
    "tokenizer_mode": "set by softspec",
    "scheduler_cls": "set by softspec",
    "worker_extension_cls": "set by softspec",
    "generation_config": "defaults of requests",
    "override_generation_config": "defaults of requests",
    "reasoning_parser": "takes thoughts out of the text of an answer",
    "shutdown_timeout": "how long accepted requests may go on after SIGTERM",
    "disable_log_stats": "logs",
    "enable_log_requests": "logs",
    "enable_logging_iteration_details": "logs",
    "logging_config": "logs",
    "log_level": "logs",
    "log_config_file": "logs",
    "show_hidden_metrics_for_version": "metrics",
    "kv_cache_metrics": "metrics",
    "kv_cache_metrics_sample": "metrics",
    "custom_histogram_buckets": "metrics",
    "otlp_traces_endpoint": "traces",
}
"""Engine arguments that may differ from vLLM's defaults, by their names in vLLM 0.32, and why that is all right."""

_log = logging.getLogger(__name__)


def untested_options(found: Any, defaults: Any, in_use: bool = False) -> list[str]:
    """The flags of every engine argument that differs from vLLM's default and was not tested with ensembles.

    Args:
        found: vLLM's `EngineArgs`, as given.
        defaults: the same class, made with the same model and nothing else.
        in_use: an engine was made of them already, which writes into the configurations among them: these are left out.
    """
    return [
        flag_of(field.name)
        for field in fields(found)
        if field.name not in TESTED_OPTIONS
        and (value := getattr(found, field.name)) != getattr(defaults, field.name)
        and not (in_use and is_dataclass(value))
    ]


def flag_of(name: str) -> str:
    """The flag of an engine argument."""
    return "--" + name.strip("_").replace("_", "-")


def require_tested(flags: list[str], allow_untested: bool | None) -> None:
    """Raise if there are options that were not tested with ensembles.

    Args:
        allow_untested: true to warn only; None where there is no flag for it.
    Raises:
        UnsupportedEngineError: the message names the flags.
    """
    if not flags:
        return
    told = f"{', '.join(flags)}: not tested with ensembles, whose answers may be wrong without a sign of it"
    if not allow_untested:
        risk = "" if allow_untested is None else ", or take the risk with --allow-untested"
        raise UnsupportedEngineError(f"{told}; remove {_it(flags)}{risk}")
    _log.warning("%s (--allow-untested)", told)


def _it(flags: list[str]) -> str:
    return "it" if len(flags) == 1 else "them"
