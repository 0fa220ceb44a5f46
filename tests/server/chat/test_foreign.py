"""Fields that vLLM does not know: OpenAI's own, other servers', and slips of the pen."""

from collections.abc import Collection
from typing import Any

import pytest
from openai.types import completion_create_params
from openai.types.chat import completion_create_params as chat_create_params

from softspec.server.chat.foreign import SWITCHED_OFF, WITHOUT_EFFECT, objection

KNOWN = (
    *("temperature", "top_p", "max_tokens", "messages", "uncertainty", "seed", "n", "stop", "logprobs"),
    *("top_logprobs", "repetition_penalty", "chat_template_kwargs", "structured_outputs"),
)
# OpenAI's fields that vLLM's request models lack and that pass, with a value that OpenAI's documents show.
OPENAI_PASSES: dict[str, object] = {
    "function_call": "none",
    "functions": [],
    "metadata": {"team": "law"},
    "modalities": ["text"],
    "prediction": {"type": "content", "content": "def f"},
    "prompt_cache_key": "k",
    "prompt_cache_options": {"mode": "implicit", "ttl": "30m"},
    "prompt_cache_retention": "24h",
    "safety_identifier": "u",
    "service_tier": "flex",
    "store": True,
    "verbosity": "low",
    "best_of": 1,
}
# The same, where they ask for something that an ensemble cannot give.
OPENAI_REFUSED: dict[str, object] = {
    "audio": {"voice": "alloy", "format": "wav"},
    "best_of": 3,
    "function_call": {"name": "f"},
    "functions": [{"name": "f"}],
    "modalities": ["text", "audio"],
    "moderation": {"model": "omni-moderation-latest"},
    "web_search_options": {},
}


def problem(field: str, value: object, num_samples: int = 1, known: Collection[str] = KNOWN) -> str | None:
    return objection(field, value, num_samples, known)


@pytest.mark.parametrize(("field", "value"), OPENAI_PASSES.items())
def test_openai_field_that_changes_nothing_in_the_text_passes(field: str, value: object) -> None:
    assert problem(field, value) is None


@pytest.mark.parametrize(("field", "value"), OPENAI_REFUSED.items())
def test_openai_field_that_asks_for_more_is_refused_by_name(field: str, value: object) -> None:
    assert f"'{field}' is not supported for ensembles" in (problem(field, value) or "")


@pytest.mark.vllm
def test_every_field_that_openai_has_and_vllm_lacks_is_known_here() -> None:
    """A new field of OpenAI's must be looked at: does it change the text?"""
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
    from vllm.entrypoints.openai.completion.protocol import CompletionRequest

    for params, request in (
        (chat_create_params.CompletionCreateParamsNonStreaming, ChatCompletionRequest),
        (completion_create_params.CompletionCreateParamsNonStreaming, CompletionRequest),
    ):
        openais = params.__required_keys__ | params.__optional_keys__
        assert openais - set(request.model_fields) <= OPENAI_PASSES.keys() | OPENAI_REFUSED.keys()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("mirostat", 0),
        ("mirostat_tau", 5.0),
        ("typical_p", 1.0),
        ("typical_p", None),
        ("top_n_tokens", 0),
        ("cache_prompt", True),
        ("id", "chat-7"),
        ("repeat_penalty", 1),
        ("tfs_z", 1.0),
        ("xtc_probability", 0.0),
        ("dry_multiplier", 0),
        ("num_beams", 1),
        ("do_sample", True),
        ("watermark", False),
        ("decoder_input_details", False),
        ("stop_sequences", []),
        ("enable_thinking", None),
    ],
)
def test_other_servers_way_to_ask_for_nothing_passes(field: str, value: object) -> None:
    assert problem(field, value) is None


@pytest.mark.parametrize(
    ("field", "value", "advice"),
    [
        ("mirostat", 2, "leave it out"),
        ("typical_p", 0.9, "leave it out"),
        ("repeat_penalty", 1.2, "use 'repetition_penalty'"),
        ("top_n_tokens", 5, "use 'top_logprobs'"),
        ("do_sample", False, "use 'temperature'"),
        ("enable_thinking", False, "use 'chat_template_kwargs'"),
        ("max_new_tokens", 5, "use 'max_tokens'"),
        ("guided_json", {"type": "object"}, "use 'structured_outputs'"),
        ("temprature", 0.0, "did you mean 'temperature'?"),
        ("uncertanty", {"policy": {}}, "did you mean 'uncertainty'?"),
        ("topp", 0.9, "did you mean 'top_p'?"),
        ("max_token", 5, "did you mean 'max_tokens'?"),
        ("promt_cache_key", "k", "did you mean 'prompt_cache_key'?"),
        ("zzz", 0, "leave it out"),
    ],
)
def test_what_would_have_no_effect_is_refused_with_advice(field: str, value: object, advice: str) -> None:
    found = problem(field, value) or ""

    assert f"'{field}'" in found
    assert found.endswith(advice)


@pytest.mark.parametrize(("best_of", "num_samples", "passes"), [(1, 1, True), (4, 4, True), (4, 2, False)])
def test_best_of_all_the_samples_is_no_choice_among_them(
    best_of: int, num_samples: int, passes: bool
) -> None:
    assert (problem("best_of", best_of, num_samples) is None) == passes


def test_no_field_is_in_both_tables() -> None:
    assert not WITHOUT_EFFECT & SWITCHED_OFF.keys()


@pytest.mark.parametrize("value", [[1], {"a": 1}, "x", 3, 0.5, True])
def test_any_json_is_judged_without_a_crash(value: Any) -> None:
    for field in SWITCHED_OFF:
        problem(field, value)
