"""A tiny random Llama with a byte-level chat tokenizer, and random adapters on it, as ordinary checkpoints.

In: a folder and a seed. Out: folders that transformers, PEFT and vLLM load from disk. Needs no network.
"""

import math
from pathlib import Path

import torch
from peft import LoraConfig
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from softspec.manifest import (
    AlwaysActivation,
    BaseModelRef,
    BlockActivation,
    Manifest,
    member_dir,
    save_manifest,
)

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
TARGET_MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
CHATML = (
    "{% for message in messages %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tiny_tokenizer(vocab_size: int = 320) -> PreTrainedTokenizerFast:
    """One token per byte, three special tokens, unused fillers up to `vocab_size`, and a ChatML template."""
    tokens = [*SPECIAL_TOKENS, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokens += [f"filler{number}" for number in range(vocab_size - len(tokens))]
    backend = Tokenizer(models.BPE(vocab={token: number for number, token in enumerate(tokens)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>"],
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHATML
    return tokenizer


def tiny_config(vocab_size: int = 320, hidden: int = 32, layers: int = 2) -> LlamaConfig:
    """A Llama of some 30 thousand weights whose head size (32) vLLM's CPU attention supports."""
    return LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        max_position_embeddings=1024,
        initializer_range=0.4,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=SPECIAL_TOKENS.index("<|im_end|>"),
        pad_token_id=SPECIAL_TOKENS.index("<|endoftext|>"),
        dtype="float32",
    )


def tiny_llama(
    directory: Path, seed: int = 0, vocab_size: int = 320, hidden: int = 32, layers: int = 2
) -> Path:
    """Save a random float32 model and its tokenizer in `directory`; the same seed gives the same weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(tiny_config(vocab_size, hidden, layers))
    model.save_pretrained(directory)
    tiny_tokenizer(vocab_size).save_pretrained(directory)
    return directory


def random_adapters(
    base_dir: Path,
    out_dir: Path,
    num_members: int,
    rank: int = 4,
    seed: int = 0,
    activation: AlwaysActivation | BlockActivation | None = None,
    name: str = "tiny-ensemble",
) -> Path:
    """Write an ensemble directory whose members differ clearly: A and B random, lora_alpha 2 * rank."""
    shapes = _linear_shapes(base_dir)
    generator = torch.Generator().manual_seed(seed)
    for member in range(num_members):
        folder = member_dir(out_dir, member)
        folder.mkdir(parents=True)
        tensors = {}
        for module, (out_features, in_features) in shapes.items():
            down = torch.randn(rank, in_features, generator=generator) / math.sqrt(in_features)
            up = torch.randn(out_features, rank, generator=generator) / math.sqrt(rank)
            tensors[f"base_model.model.{module}.lora_A.weight"] = down
            tensors[f"base_model.model.{module}.lora_B.weight"] = 0.5 * up
        save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
        LoraConfig(
            r=rank,
            lora_alpha=2 * rank,
            target_modules=list(TARGET_MODULES),
            task_type="CAUSAL_LM",
            base_model_name_or_path=str(base_dir),
            inference_mode=True,
        ).save_pretrained(str(folder))
    manifest = Manifest(
        name=name,
        base_model=BaseModelRef(path=str(base_dir)),
        num_members=num_members,
        log_weights=(-math.log(num_members),) * num_members,
        renyi_alpha=0.8,
        activation=activation or AlwaysActivation(),
    )
    save_manifest(out_dir, manifest)
    return out_dir


def _linear_shapes(base_dir: Path) -> dict[str, tuple[int, int]]:
    """Module path -> (out, in) of every target of the base, without loading weights."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(base_dir))
    return {
        name: (module.out_features, module.in_features)
        for name, module in model.named_modules()
        if name.rpartition(".")[2] in TARGET_MODULES
    }
