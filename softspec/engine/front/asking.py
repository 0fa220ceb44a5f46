"""What a request asks, read from vLLM's own objects.

In: a prompt and sampling parameters, as vLLM's handlers give them to an engine. Out: the numbers of `Asked`.

vLLM 0.32 places: `vllm.inputs` (the shapes of a prompt), `SamplingParams`, `StructuredOutputsParams`.
"""

import json
from collections.abc import Mapping
from typing import Any

from vllm.sampling_params import SamplingParams

from softspec.engine.asked import Asked

_GRAMMARS = ("json", "regex", "choice", "grammar", "structural_tag")


def asked_of(models: tuple[str, ...], prompt: object, params: SamplingParams) -> Asked:
    """What is asked of a model with these names."""
    return Asked(
        models,
        prompt_length(prompt),
        params.n,
        params.logprobs or 0,
        _grammar_chars(params.structured_outputs),
    )


def prompt_length(prompt: Any) -> int:
    """How many tokens a prompt has, as far as it has been made into tokens or their embeddings."""
    if not isinstance(prompt, Mapping):
        return 0
    inner = prompt.get("decoder_prompt") or prompt
    found = next(
        (inner[name] for name in ("prompt_token_ids", "prompt_embeds") if inner.get(name) is not None), ()
    )
    return len(found)


def _grammar_chars(grammar: Any) -> int:
    """The length of what answers must conform to, as text."""
    given = (getattr(grammar, name, None) for name in _GRAMMARS)
    return sum(len(each if isinstance(each, str) else json.dumps(each)) for each in given if each is not None)
