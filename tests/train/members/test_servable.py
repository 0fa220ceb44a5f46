"""What no engine serves is said before it is trained."""

from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma3TextConfig, Lfm2Config, PretrainedConfig, Qwen3MoeConfig

from softspec.engine.start.flags import engine_rank
from softspec.errors import ConfigError
from softspec.train.members.base import load_skeleton
from softspec.train.members.servable import LARGEST_RANK, cache_kinds, check_servable
from softspec.train.members.spec import resolve_spec, what_is_adapted
from softspec.train.run import train_ensemble
from tests.support.tiny import tiny_config, tiny_llama, tiny_tokenizer
from tests.support.tiny_training import config_of_no_files, write_config

ALWAYS = {"kind": "always"}
SIZES: dict[str, Any] = {
    "vocab_size": 320,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
}


def skeleton_of(config: PretrainedConfig) -> torch.nn.Module:
    """A model without weights."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


LFM2 = Lfm2Config(**SIZES, layer_types=["conv", "full_attention"])
GEMMA = Gemma3TextConfig(**SIZES, layer_types=["sliding_attention", "full_attention"], sliding_window=48)


def test_the_largest_rank_is_that_of_the_engine() -> None:
    assert engine_rank(LARGEST_RANK) == LARGEST_RANK
    with pytest.raises(ConfigError):
        engine_rank(LARGEST_RANK + 1)


@pytest.mark.vllm
def test_the_largest_rank_is_that_of_vllm() -> None:
    from vllm.config.lora import MaxLoRARanks

    assert max(get_args(MaxLoRARanks)) == LARGEST_RANK


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lora_r": 513}, "lora_r is 513, but vLLM serves LoRA ranks up to 512; lower it"),
        (
            {"activation": {"kind": "block", "block_size": 20}},
            "activation.block_size is 20, expected a multiple of 16",
        ),
        ({"activation": {"kind": "block", "block_size": 8}}, "block_size is 8, expected a multiple of 16"),
    ],
    ids=["rank", "20", "8"],
)
def test_what_no_engine_serves_is_refused_before_the_weights_are_loaded(
    tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    write_config(tmp_path)
    (tmp_path / "base" / "model.safetensors").write_bytes(b"loading this would fail")

    with pytest.raises(ConfigError, match=message):
        train_ensemble(write_config(tmp_path, **settings))


@pytest.mark.parametrize("settings", [{}, {"activation": ALWAYS}, {"lora_r": 512}], ids=str)
def test_what_every_engine_serves_needs_no_word(settings: dict[str, Any]) -> None:
    assert check_servable(config_of_no_files(**settings), skeleton_of(tiny_config())) == []


def test_blocks_that_only_gpus_have_are_told() -> None:
    config = config_of_no_files(activation={"kind": "block", "block_size": 48})

    [line] = check_servable(config, skeleton_of(tiny_config()))

    assert "no multiple of 32: the ensemble can be served on GPUs but not on CPUs" in line


@pytest.mark.parametrize(
    ("model", "kinds"),
    [(tiny_config(), {"full"}), (GEMMA, {"full", "window of 48"}), (LFM2, {"state", "full"})],
    ids=["Llama", "Gemma 3", "LFM2"],
)
def test_kinds_of_cache_are_known_from_the_configuration(model: PretrainedConfig, kinds: set[str]) -> None:
    assert cache_kinds(skeleton_of(model)) == kinds


@pytest.mark.parametrize(
    "model_type",
    ["qwen3_next", "jamba", "bamba", "falcon_h1", "granitemoehybrid", "recurrent_gemma", "zamba2", "minimax"],
)
def test_models_with_a_state_are_known_as_such(model_type: str) -> None:
    from transformers import AutoConfig

    config = AutoConfig.for_model(model_type)

    assert "state" in cache_kinds(skeleton_of(config))


def test_a_model_with_a_state_is_refused_unless_adapters_are_always_on(tmp_path: Path) -> None:
    base = tmp_path / "base"
    LFM2.save_pretrained(base)
    tiny_tokenizer().save_pretrained(base)
    tiny_llama(tmp_path / "other")
    (tmp_path / "other" / "model.safetensors").rename(base / "model.safetensors")
    write_config(tmp_path)

    with pytest.raises(
        ConfigError,
        match=r"more than attention, so members cannot share it; set activation: \{kind: always\}",
    ):
        train_ensemble(write_config(tmp_path))

    [line] = check_servable(config_of_no_files(activation=ALWAYS), load_skeleton(str(base)))
    assert "'softspec serve' will refuse the ensemble" in line


def test_windows_beside_full_attention_are_told_with_the_flag_that_serves_them() -> None:
    """Tested on an engine with `test_other_architectures.py`."""
    [line] = check_servable(config_of_no_files(), skeleton_of(GEMMA))

    assert "(full, window of 48): serve the ensemble with --disable-hybrid-kv-cache-manager" in line


@pytest.mark.parametrize(
    ("model", "line"),
    [
        (tiny_config(), "each member adapts q_proj, v_proj in 1 of 2 layers: 2 modules, 640 weights"),
        (
            Qwen3MoeConfig(**SIZES, num_experts=4, moe_intermediate_size=16, decoder_sparse_step=1),
            "2 modules, 640 weights; the 12,288 weights of its experts get none",
        ),
    ],
    ids=["Llama", "Qwen3-MoE"],
)
def test_what_gets_an_adapter_is_told(model: PretrainedConfig, line: str) -> None:
    skeleton = skeleton_of(model)
    spec = resolve_spec(skeleton, 4, 8, ("q_proj", "v_proj"), "top_third")

    assert line in what_is_adapted(spec, skeleton)
