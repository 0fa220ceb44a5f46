"""An engine that cannot serve an ensemble is refused at start-up, with the flag that helps."""

import math
from contextlib import nullcontext
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest

from softspec.artefact.activation import BlockActivation
from softspec.artefact.manifest import BaseModelRef, Manifest
from softspec.engine.requirements import SCHEDULER, WORKER_EXTENSION, require_base, require_engine
from softspec.errors import ConfigError, UnsupportedEngineError


@dataclass(frozen=True)
class Loaded:
    manifest: Manifest
    rank: int


ENSEMBLE = Loaded(
    Manifest(
        name="jurists",
        base_model=BaseModelRef(path="base"),
        num_members=2,
        log_weights=(-math.log(2),) * 2,
        renyi_alpha=0.8,
        activation=BlockActivation(block_size=32),
    ),
    rank=16,
)


def config(**changes: Any) -> SimpleNamespace:
    """The parts of a fitting `VllmConfig` that are read; keys of `changes` are `part__field`."""
    parts: dict[str, Any] = {
        "lora_config": {"max_lora_rank": 16, "max_loras": 2, "max_cpu_loras": 2},
        "scheduler_config": {
            "scheduler_cls": SCHEDULER,
            "max_num_seqs": 3,
            "max_num_active_seqs": None,
            "long_prefill_token_threshold": 0,
            "policy": "fcfs",
            "watermark": 0.0,
        },
        "parallel_config": {
            "worker_extension_cls": WORKER_EXTENSION,
            "pipeline_parallel_size": 1,
            "data_parallel_size": 1,
            "prefill_context_parallel_size": 1,
            "decode_context_parallel_size": 1,
            "enable_batch_sharded_sampling": False,
        },
        "model_config": {"max_logprobs": 8, "max_model_len": 64, "hf_text_config": SimpleNamespace()},
        "cache_config": {"block_size": 16, "num_gpu_blocks": 10, "enable_prefix_caching": True},
        "device_config": {"device_type": "cuda"},
    }
    for path, value in changes.items():
        part, _, field = path.partition("__")
        if field:
            parts[part][field] = value
    options = {"speculative_config": None, "kv_transfer_config": None}
    options |= {path: value for path, value in changes.items() if "__" not in path}
    return SimpleNamespace(**options, **{part: SimpleNamespace(**fields) for part, fields in parts.items()})


@pytest.mark.parametrize("version", ["0.32.0", "0.32.0+cpu"])
def test_tested_version_with_just_enough_room_is_accepted(version: str) -> None:
    require_engine(version, config(), [ENSEMBLE])


@pytest.mark.parametrize("version", ["0.31.9", "0.33.0", "0.32.1"])
def test_untested_versions_are_refused_by_name(version: str) -> None:
    with pytest.raises(UnsupportedEngineError, match=f"vLLM {version} was not tested .* install 0.32.0"):
        require_engine(version, config(), [ENSEMBLE])


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"lora_config__max_lora_rank": 8}, "16 LoRA rank but the engine allows 8: .* --max-lora-rank 16"),
        ({"lora_config__max_loras": 1}, "2 members but the engine allows 1: .* --max-loras 2"),
        ({"lora_config__max_cpu_loras": 1}, "2 members but the engine keeps 1 .*: .* --max-loras 2, or .*"),
        ({"scheduler_config__max_num_seqs": 2}, "3 rows but the engine allows 2: .* --max-num-seqs 3"),
        (
            {"scheduler_config__max_num_active_seqs": 2},
            "3 rows but the engine allows 2: .* --max-num-active-seqs 3",
        ),
        ({"model_config__max_logprobs": 7}, "8 log-probability columns .* allows 7: .* --max-logprobs 8"),
        ({"cache_config__block_size": 128}, "multiples of 32 tokens .* blocks have 128: .* --block-size 32"),
        ({"cache_config__num_gpu_blocks": 9}, "room for 48 tokens .* may have 64: .* --max-model-len 48"),
        ({"cache_config__enable_prefix_caching": False}, "prefix caching is off .* --enable-prefix-caching"),
    ],
)
def test_engine_too_small_for_the_ensemble_is_refused_with_the_flag(
    changes: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(ConfigError, match=complaint):
        require_engine("0.32.0", config(**changes), [ENSEMBLE])


@pytest.mark.parametrize(
    ("device", "active_from", "blocks", "complaint"),
    [
        ("cuda", 20, 16, "multiples of 20 tokens but KV blocks have multiples of 16 .*: train it"),
        ("cuda", 48, 16, None),
        ("cpu", 48, 16, "multiples of 48 tokens but KV blocks have multiples of 32 .*: train it"),
        ("cpu", 96, 32, None),
        # Two ensembles whose blocks have no common measure that the device can have.
        ("cpu", 32, 16, "blocks have 16: start it with --block-size 32"),
    ],
)
def test_adapters_that_begin_where_no_block_can_end_are_refused(
    device: str, active_from: int, blocks: int, complaint: str | None
) -> None:
    manifest = ENSEMBLE.manifest.model_copy(update={"activation": BlockActivation(block_size=active_from)})
    found = config(cache_config__block_size=blocks, device_config__device_type=device)

    with pytest.raises(ConfigError, match=complaint) if complaint else nullcontext():
        require_engine("0.32.0", found, [Loaded(manifest, rank=16)])


@pytest.mark.parametrize(("trained", "is_served"), [("a" * 64, True), ("b" * 64, False), (None, True)])
def test_base_of_the_training_is_the_base_that_is_served(trained: str | None, is_served: bool) -> None:
    base = BaseModelRef(path="maker/model", revision="v1", fingerprint=trained)
    manifest = ENSEMBLE.manifest.model_copy(update={"base_model": base})

    complaint = (
        "'jurists' .* bbbbbbbbbbbb \\('maker/model' at revision 'v1'\\) but aaaaaaaaaaaa .* --base-unchecked"
    )
    with nullcontext() if is_served else pytest.raises(ConfigError, match=complaint):
        require_base("a" * 64, [manifest])
    require_base(None, [manifest])


def test_ensemble_without_a_fingerprint_is_served_with_a_line_in_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    require_base("a" * 64, [ENSEMBLE.manifest])

    assert "ensemble 'jurists' does not say on which base it was trained: unchecked" in caplog.text


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"scheduler_config__scheduler_cls": None}, "--scheduler-cls is not set: expected softspec"),
        (
            {"parallel_config__worker_extension_cls": ""},
            "--worker-extension-cls is not set: expected softspec",
        ),
        ({"scheduler_config__scheduler_cls": dict}, "--scheduler-cls is <class 'dict'>: expected softspec"),
    ],
)
def test_engine_without_our_parts_is_refused(changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(UnsupportedEngineError, match=complaint):
        require_engine("0.32.0", config(**changes), [ENSEMBLE])


@pytest.mark.parametrize(
    ("changes", "remedy"),
    [
        ({"speculative_config": object()}, "remove --speculative-config"),
        ({"kv_transfer_config": object()}, "remove --kv-transfer-config"),
        ({"parallel_config__enable_batch_sharded_sampling": True}, "remove --enable-batch-sharded-sampling"),
        ({"parallel_config__pipeline_parallel_size": 2}, "--tensor-parallel-size"),
        ({"parallel_config__data_parallel_size": 2}, "remove --data-parallel-size"),
        ({"parallel_config__decode_context_parallel_size": 2}, "remove .* --decode-context-parallel-size"),
        ({"parallel_config__prefill_context_parallel_size": 2}, "remove --prefill-context-parallel-size"),
        ({"scheduler_config__long_prefill_token_threshold": 9}, "remove --long-prefill-token-threshold"),
        ({"scheduler_config__policy": "priority"}, "--scheduling-policy fcfs"),
        ({"scheduler_config__watermark": 0.1}, "remove --watermark"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_options_that_take_a_group_apart_are_refused(changes: dict[str, Any], remedy: str) -> None:
    with pytest.raises(UnsupportedEngineError, match=remedy):
        require_engine("0.32.0", config(**changes), [ENSEMBLE])


@pytest.mark.parametrize(
    ("kinds", "is_served"),
    [
        (None, True),
        (["full_attention"] * 3, True),
        (["sliding_attention", "full_attention"], False),
        (["linear_attention", "full_attention"], False),
    ],
)
def test_bases_with_several_kinds_of_attention_cache_are_refused_before_weights_are_read(
    kinds: list[str] | None, is_served: bool
) -> None:
    found = config(model_config__hf_text_config=SimpleNamespace(layer_types=kinds))

    with (
        nullcontext() if is_served else pytest.raises(UnsupportedEngineError, match="layers of several kinds")
    ):
        require_engine("0.32.0", found, [ENSEMBLE])


def test_engine_without_lora_is_refused() -> None:
    found = config()
    found.lora_config = None

    with pytest.raises(ConfigError, match="--enable-lora"):
        require_engine("0.32.0", found, [ENSEMBLE])


def test_unlimited_logprobs_are_enough() -> None:
    require_engine("0.32.0", config(model_config__max_logprobs=-1), [ENSEMBLE])
