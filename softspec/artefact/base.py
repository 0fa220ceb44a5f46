"""The identity of the frozen base: a fingerprint of its files, and the tokens that end its answers.

In: a checkpoint directory or hub id, and a revision. Out: digests and token ids, from files alone. Loads no weights.
"""

import hashlib
from pathlib import Path

from transformers import GenerationConfig, PreTrainedTokenizerBase
from transformers.utils import cached_file

FINGERPRINT_BYTES = 1 << 20


def end_of_turn_ids(tokenizer: PreTrainedTokenizerBase, base_model: str, revision: str | None) -> set[int]:
    """Every token that ends an answer, from the tokenizer and the base's generation config."""
    try:
        listed = GenerationConfig.from_pretrained(base_model, revision=revision).eos_token_id
    except OSError:  # checkpoints may come without one
        listed = None
    ids = listed if isinstance(listed, list) else [listed]
    return {token for token in (*ids, tokenizer.eos_token_id) if token is not None}


def fingerprint(base_model: str, revision: str | None = None) -> str:
    """A digest that differs between different weights, from the ends of each file rather than all their bytes."""
    config = Path(str(cached_file(base_model, "config.json", revision=revision)))
    digest = hashlib.sha256(config.read_bytes())
    for path in sorted(config.parent.glob("*.safetensors")):
        digest.update(f"{path.name} {path.stat().st_size}".encode())
        with path.open("rb") as file:
            digest.update(file.read(FINGERPRINT_BYTES))
            file.seek(max(0, path.stat().st_size - FINGERPRINT_BYTES))
            digest.update(file.read())
    return digest.hexdigest()
