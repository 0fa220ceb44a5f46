"""Request fields that vLLM does not know: which may pass because they change nothing in the text, and what to say else.

In: a field's name and value. Out: nothing, or the sentence that refuses it. Other servers' and OpenAI's own fields are
in tables; the rest is a slip of the pen, for which the nearest field that exists is named.
"""

from collections.abc import Collection
from difflib import get_close_matches

WITHOUT_EFFECT = frozenset(
    {
        # OpenAI's: labels, storage, caching and speed. (Length of style, too: a wish that no model here was taught.)
        *("metadata", "prediction", "prompt_cache_key", "prompt_cache_options", "prompt_cache_retention"),
        *("safety_identifier", "service_tier", "store", "stream_options", "user", "verbosity"),
        # Anthropic's: caching, speed and place.
        *("cache_control", "diagnostics", "inference_geo", "speed", "user_profile_id", "workspace_id"),
        # Other servers': their caches, and the settings of samplers that are switched by a field of SWITCHED_OFF.
        *("cache_prompt", "id", "id_slot", "slot_id", "keep_alive", "use_cache", "num_keep", "n_keep"),
        *("mirostat_tau", "mirostat_eta", "dry_base", "dry_allowed_length", "dry_penalty_last_n"),
        *("dry_sequence_breakers", "xtc_threshold", "dynatemp_exponent", "smoothing_curve", "repeat_last_n"),
    }
)
"""Fields that change nothing in the text, whatever their value."""

SWITCHED_OFF: dict[str, tuple[object, ...]] = {
    "audio": (),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "modalities": ([], ["text"]),
    "moderation": (),
    "web_search_options": (),
    **dict.fromkeys(("mirostat", "top_n_tokens", "n_probs", "xtc_probability", "dry_multiplier"), (0,)),
    **dict.fromkeys(("dynatemp_range", "smoothing_factor", "top_a", "epsilon_cutoff", "eta_cutoff"), (0,)),
    **dict.fromkeys(("penalty_alpha", "no_repeat_ngram_size", "diversity_penalty"), (0,)),
    **dict.fromkeys(("typical_p", "typical", "tfs", "tfs_z", "repeat_penalty", "num_beams"), (1,)),
    **dict.fromkeys(("guidance_scale", "cfg_scale", "encoder_repetition_penalty"), (1,)),
    "top_n_sigma": (0, -1),
    "do_sample": (True,),
    "enable_thinking": (),
}
"""Fields that change the text or what comes with it, and the values that say it shall not be."""

_INSTEAD = {
    "conversation": ("input",),
    "do_sample": ("temperature",),
    "enable_thinking": ("chat_template_kwargs",),
    "function_call": ("tool_choice",),
    "functions": ("tools",),
    "grammar": ("structured_outputs",),
    "guided_choice": ("structured_outputs",),
    "guided_grammar": ("structured_outputs",),
    "guided_json": ("structured_outputs", "output_config"),
    "guided_regex": ("structured_outputs",),
    "instructions": ("system", "messages"),
    "json_schema": ("response_format", "text", "output_config"),
    "max_completion_tokens": ("max_output_tokens", "max_tokens"),
    "max_new_tokens": ("max_tokens", "max_output_tokens"),
    "max_tokens": ("max_output_tokens",),
    "messages": ("input",),
    "n_predict": ("max_tokens", "max_output_tokens"),
    "n_probs": ("top_logprobs",),
    "num_predict": ("max_tokens", "max_output_tokens"),
    "output_format": ("output_config", "response_format", "text"),
    "repeat_penalty": ("repetition_penalty",),
    "response_format": ("text", "output_config"),
    "stop": ("stop_sequences",),
    "stop_sequences": ("stop",),
    "system": ("instructions", "messages"),
    "top_n_tokens": ("top_logprobs",),
}
"""Where a field's wish belongs: the first of these that the route has."""


def objection(field: str, value: object, num_samples: int, known: Collection[str]) -> str | None:
    """Why a request may not have this field; None when it asks for nothing.

    `num_samples` is the request's n, `known` are the fields that there are.
    """
    if field in WITHOUT_EFFECT or value is None:
        return None
    better = next((name for name in _INSTEAD.get(field, ()) if name in known), None)
    instead = f"use '{better}'" if better else "leave it out"
    if field == "best_of":
        return (
            None if value in (1, num_samples) else "'best_of' is not supported for ensembles: sample with 'n'"
        )
    if field in SWITCHED_OFF:
        return (
            None if value in SWITCHED_OFF[field] else f"'{field}' is not supported for ensembles: {instead}"
        )
    if not is_set(value):
        return None
    nearest = get_close_matches(field, [*known, *SWITCHED_OFF, *WITHOUT_EFFECT], n=1, cutoff=0.8)
    if better is None and nearest:
        instead = f"did you mean '{nearest[0]}'?"
    return f"unknown field '{field}', which would have no effect: {instead}"


def is_set(value: object) -> bool:
    """Whether a field asks for anything: clients send null, false and empty lists for what they do not want."""
    return not (value is None or value is False or value in ([], {}))
