"""Bases that are no Llama: trained here, reloaded by stock PEFT, served by vLLM, equal to the reference decoder."""

from pathlib import Path

import pytest
import torch
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    PretrainedConfig,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from softspec.maths.sampling import SamplingSpec
from softspec.reference import ReferenceEnsemble
from softspec.train.run import train_ensemble
from tests.support.parity import TOLERANCE, largest_difference, prompt
from tests.support.tiny import SPECIAL_TOKENS, tiny_tokenizer
from tests.support.tiny_training import chat_rows, write_config, write_rows

pytestmark = pytest.mark.vllm

SIZES = {
    "vocab_size": 320,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "max_position_embeddings": 1024,
    "bos_token_id": None,
    "eos_token_id": SPECIAL_TOKENS.index("<|im_end|>"),
    "pad_token_id": SPECIAL_TOKENS.index("<|endoftext|>"),
    "dtype": "float32",
}
ARCHITECTURES: dict[str, tuple[type[PreTrainedModel], PretrainedConfig]] = {
    "Qwen3": (Qwen3ForCausalLM, Qwen3Config(**SIZES, initializer_range=0.4)),
    "Gemma 3": (
        Gemma3ForCausalLM,
        Gemma3TextConfig(**SIZES, initializer_range=0.1, layer_types=["full_attention"] * 2),
    ),
    "Gemma 3 with windows": (
        Gemma3ForCausalLM,
        Gemma3TextConfig(
            **SIZES,
            initializer_range=0.1,
            layer_types=["sliding_attention", "full_attention"],
            sliding_window=48,
        ),
    ),
}
ONE_CACHE = {"Gemma 3 with windows": {"disable_hybrid_kv_cache_manager": True}}
"""What an engine must be told so that all layers of the architecture have one kind of attention cache."""


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_what_was_trained_is_what_is_served(tmp_path: Path, architecture: str) -> None:
    """Training itself compares every member with stock PEFT before it writes an ensemble."""
    from tests.support.engine_harness import EngineHarness, Question, SamplingParams

    kind, config = ARCHITECTURES[architecture]
    torch.manual_seed(0)
    kind(config).save_pretrained(tmp_path / "base")
    tiny_tokenizer().save_pretrained(tmp_path / "base")
    write_rows(tmp_path / "train.jsonl", chat_rows())
    ensemble = train_ensemble(write_config(tmp_path, b_init_std=0.05))
    cases = [(length, temperature) for length in (2, 33, 70) for temperature in (0.0, 1.0)]

    told = ONE_CACHE.get(architecture, {})
    engine = EngineHarness(
        tmp_path / "base", [ensemble], max_model_len=128, num_gpu_blocks_override=40, **told
    )
    try:
        replies = engine.ask(
            *(
                Question(
                    "ensemble",
                    prompt(length),
                    SamplingParams(temperature=temperature, seed=5, max_tokens=8, ignore_eos=True),
                )
                for length, temperature in cases
            )
        )
    finally:
        engine.close()

    reference = ReferenceEnsemble.load(tmp_path / "base", ensemble)
    for (length, temperature), reply in zip(cases, replies, strict=True):
        expected = reference.decode(prompt(length), SamplingSpec(temperature=temperature, seed=5), 8)
        assert largest_difference(reply.choices[0].tokens, expected) < TOLERANCE
        assert max(token.epistemic for token in expected) > 0.01
