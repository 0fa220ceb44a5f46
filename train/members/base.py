"""The frozen base: its tokenizer, its shape and its weights.

In: a `TrainConfig`'s base, or the one an ensemble names. Out: transformers objects. Knows nothing of adapters
or data.
"""

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from softspec.artefact.fingerprint import has_tokenizer
from softspec.artefact.weights import cannot_load, load_whole
from softspec.errors import ConfigError


def load_tokenizer(base_model: str, revision: str | None = None) -> PreTrainedTokenizerBase:
    """The base model's tokenizer, chat template included.

    Raises:
        ConfigError: the base cannot be found or has no tokenizer.
    """
    try:
        return AutoTokenizer.from_pretrained(base_model, revision=revision)
    except Exception as error:  # of transformers, tokenizers or what they need
        if not has_tokenizer(base_model, revision):
            raise ConfigError(
                f"base_model '{base_model}' has no tokenizer: expected its files, such as tokenizer.json, beside "
                "config.json"
            ) from error
        raise cannot_load(base_model, revision, error) from error


def load_skeleton(base_model: str, revision: str | None = None) -> PreTrainedModel:
    """The base's modules without weights, which are cheap: to check names before the real thing is loaded.

    Raises:
        ConfigError: no model there, or one with quantised weights.
    """
    try:
        config = AutoConfig.from_pretrained(base_model, revision=revision)
        with torch.device("meta"):
            skeleton = AutoModelForCausalLM.from_config(config)
    except Exception as error:  # of transformers, or of a configuration that fits no model
        raise cannot_load(base_model, revision, error) from error
    quantisation = getattr(config, "quantization_config", None)
    if quantisation is not None:
        # The members' layers multiply with the plain weights themselves.
        raise ConfigError(
            f"base_model '{base_model}' is quantised ({quantisation.get('quant_method', 'unknown method')}): train on "
            "the same model without quantisation"
        )
    return skeleton


def load_base(
    base_model: str, revision: str | None = None, dtype: str = "auto", device: torch.device | None = None
) -> PreTrainedModel:
    """The base with its weights, on the GPU if there is one; `auto` is bfloat16 there and float32 on the CPU.

    Raises:
        ConfigError: no model there, its files cannot be read, or they lack weights.
    """
    device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if dtype == "auto":
        dtype = "bfloat16" if device.type == "cuda" else "float32"
    return load_whole(base_model, revision, getattr(torch, dtype)).to(device)
