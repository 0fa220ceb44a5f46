"""The material of every way: a base with weights, the same random adapters and the same random examples.

In: a base and a cell. Out: a checkpoint directory; adapters under PEFT's names; tokens. Trains nothing.
"""

import random
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from softspec.app.bench.core.flags import parse_layers
from softspec.app.bench.training.settings import BenchSettings, Cell
from softspec.app.smollm2 import local_base
from softspec.train.data.units import Example
from softspec.train.members.base import load_skeleton
from softspec.train.members.spec import resolve_spec

SPECIALISED_B_STD = 0.5
"""By which members of SmolLM2-135M differ by tens of nats, for completions of 8 random tokens too."""


def base_with_weights(base: str | None, scratch: Path, seed: int) -> str:
    """The base itself, or a checkpoint of random weights in `scratch` if it is a directory without any.

    Raises:
        ConfigError: no base is given and the default one is not installed.
    """
    if base is None:
        return str(local_base())
    folder = Path(base)
    has_weights = any(path.suffix in (".safetensors", ".bin") for path in folder.glob("*"))
    if has_weights or not (folder / "config.json").is_file():
        return base
    torch.manual_seed(seed)
    dtype = torch.bfloat16 if torch.cuda.is_available() else torch.float32
    AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(base), dtype=dtype).save_pretrained(scratch)
    return str(scratch)


def adapter_states(base: str, cell: Cell, settings: BenchSettings) -> list[dict[str, Tensor]]:
    """Each member's weights for the linear layers of the chosen decoder layers: A as PEFT draws it, B by the regime."""
    generator = torch.Generator().manual_seed(settings.seed)
    scale = SPECIALISED_B_STD if cell.regime == "specialised" else 0.0
    skeleton = load_skeleton(base)
    spec = resolve_spec(
        skeleton, settings.rank, 2 * settings.rank, "all-linear", parse_layers(settings.layers)
    )
    states = []
    for _ in range(cell.members):
        state = {}
        for name, module in spec.targets(skeleton):
            down = torch.rand(settings.rank, module.in_features, generator=generator)
            up = torch.randn(module.out_features, settings.rank, generator=generator)
            state[f"base_model.model.{name}.lora_A.weight"] = (2 * down - 1) / module.in_features**0.5
            state[f"base_model.model.{name}.lora_B.weight"] = scale * up
        states.append(state)
    return states


def random_examples(base: str, cell: Cell, settings: BenchSettings, count: int) -> list[Example]:
    """So many examples of a cell, random token ids; all ways begin with the same ones."""
    draw = random.Random(f"{settings.seed} tokens {cell.prompt_tokens} {cell.completion_tokens}")
    vocabulary = range(AutoConfig.from_pretrained(base).vocab_size)

    def tokens(count: int) -> tuple[int, ...]:
        return tuple(draw.choices(vocabulary, k=count))

    return [Example(tokens(cell.prompt_tokens), tokens(cell.completion_tokens)) for _ in range(count)]
