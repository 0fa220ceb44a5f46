"""A base in numbers: how many weights it has, and of which shapes.

In: `config.json` of a checkpoint. Out: a frozen `Base`. Reads no weights; knows dense decoders of one kind: attention
and a gated MLP in every layer.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from softspec.errors import ConfigError

_OTHERS = {
    "quantization_config": "a quantised base",
    "num_experts": "a mixture of experts",
    "num_local_experts": "a mixture of experts",
    "n_routed_experts": "a mixture of experts",
    "kv_lora_rank": "compressed attention",
}
"""Keys of models whose weights or caches are counted in another way."""
_ATTENTION = {"full_attention", "sliding_attention"}


@dataclass(frozen=True)
class Base:
    """`head_size` is a head's width; `tied`: the vocabulary's weights are there once; `longest` may be unknown."""

    name: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_size: int
    intermediate: int
    vocabulary: int
    tied: bool
    longest: int | None = None

    @property
    def query_width(self) -> int:
        return self.heads * self.head_size

    @property
    def kv_width(self) -> int:
        return self.kv_heads * self.head_size

    @cached_property
    def linears(self) -> dict[str, tuple[int, int]]:
        """(in, out) of every linear layer of a decoder layer."""
        return {
            "q_proj": (self.hidden, self.query_width),
            "k_proj": (self.hidden, self.kv_width),
            "v_proj": (self.hidden, self.kv_width),
            "o_proj": (self.query_width, self.hidden),
            "gate_proj": (self.hidden, self.intermediate),
            "up_proj": (self.hidden, self.intermediate),
            "down_proj": (self.intermediate, self.hidden),
        }

    @cached_property
    def layer_weights(self) -> int:
        """Weights of the linear layers of one decoder layer."""
        return sum(width * height for width, height in self.linears.values())

    @property
    def vocabulary_weights(self) -> int:
        """Weights of the matrix that makes logits."""
        return self.vocabulary * self.hidden

    @property
    def weights(self) -> int:
        """All weights: vocabulary, decoder layers with two norms each, one more norm; biases are left out."""
        tables = self.vocabulary_weights * (1 if self.tied else 2)
        norms = (2 * self.layers + 1) * self.hidden
        return tables + self.layers * self.layer_weights + norms


def read_base(place: str) -> Base:
    """The base of a directory with a `config.json`, of such a file, or of a hub id.

    Raises:
        ConfigError: there is none, or it is of a kind that is not counted here.
    """
    path = Path(place)
    file = path / "config.json" if path.is_dir() else path
    if not file.is_file():
        if path.exists():
            raise ConfigError(f"no config.json in '{place}': name a checkpoint's directory")
        return base_of(place, _from_hub(place))
    try:
        config = json.loads(file.read_bytes())
    except ValueError as error:
        raise ConfigError(f"'{file}' is no JSON ({error}): name a checkpoint's config.json") from error
    return base_of(file.parent.name if path.is_dir() else file.name, config)


def base_of(name: str, config: Mapping[str, Any]) -> Base:
    """The numbers in a `config.json`, or in the part of it that is about text.

    Raises:
        ConfigError: a number is missing, or the model is of another kind.
    """
    config = config.get("text_config") or config
    for key, what in _OTHERS.items():
        if config.get(key):
            raise ConfigError(f"'{name}' is {what} ({key}): its size is not planned, only dense decoders'")
    if others := set(config.get("layer_types") or ()) - _ATTENTION:
        raise ConfigError(
            f"'{name}' has layers of type {', '.join(sorted(others))}: only attention is planned"
        )
    heads = _number(name, config, "num_attention_heads")
    hidden = _number(name, config, "hidden_size")
    return Base(
        name=name,
        layers=_number(name, config, "num_hidden_layers"),
        hidden=hidden,
        heads=heads,
        kv_heads=_number(name, config, "num_key_value_heads", heads),
        head_size=_number(name, config, "head_dim", hidden // heads),
        intermediate=_number(name, config, "intermediate_size"),
        vocabulary=_number(name, config, "vocab_size"),
        tied=bool(config.get("tie_word_embeddings", True)),  # as transformers reads a file that does not say
        longest=config.get("max_position_embeddings"),
    )


def _number(name: str, config: Mapping[str, Any], key: str, default: int | None = None) -> int:
    value = config.get(key)
    value = default if value is None else value
    if not isinstance(value, int) or value < 1:
        raise ConfigError(f"'{name}': {key} is {value!r} in its config.json, expected a number of at least 1")
    return value


def _from_hub(place: str) -> dict[str, Any]:
    from transformers import AutoConfig

    try:
        return dict(AutoConfig.from_pretrained(place).to_dict())
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(f"'{place}' is no directory, and no hub gives it: {reason}") from error
