"""What vLLM reads from a base's files, known before anything is trained: where answers end, how long they may be.

In: a checkpoint directory or hub id, and a revision. Out: numbers, from files alone. Loads no weights.
"""

from transformers import AutoConfig, GenerationConfig, PretrainedConfig, PreTrainedTokenizerBase


def end_of_turn_ids(tokenizer: PreTrainedTokenizerBase, base_model: str, revision: str | None) -> set[int]:
    """Every token at which vLLM ends an answer: the tokenizer's end, and those that the base's files list.

    Those are of generation_config.json; of config.json where a checkpoint comes without a readable one.
    """
    try:
        listed = GenerationConfig.from_pretrained(base_model, revision=revision).eos_token_id
    except OSError:
        config = AutoConfig.from_pretrained(base_model, revision=revision)
        listed = GenerationConfig.from_model_config(config).eos_token_id
    ids = listed if isinstance(listed, list) else [listed]
    return {token for token in (*ids, tokenizer.eos_token_id) if token is not None}


def context_length(base_model: str, revision: str | None) -> int | None:
    """The most tokens, prompt and answer, that vLLM serves of a base; None where its files do not say."""
    config = AutoConfig.from_pretrained(base_model, revision=revision).get_text_config()
    positions = getattr(config, "max_position_embeddings", None)
    if not isinstance(positions, int) or positions <= 0:
        return None
    return int(positions * _rope_factor(config))


def _rope_factor(config: PretrainedConfig) -> float:
    """How much further than `max_position_embeddings` positions reach; most kinds of scaling are in that number."""
    parameters = getattr(config, "rope_parameters", None) or {}
    each = (
        parameters.values() if all(isinstance(value, dict) for value in parameters.values()) else [parameters]
    )
    factors = [float(one.get("factor") or 1) for one in each if one.get("rope_type") in ("linear", "dynamic")]
    return max(factors, default=1.0) if "gemma3" not in config.model_type else 1.0
