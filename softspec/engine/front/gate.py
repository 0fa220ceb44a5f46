"""The gate before the engine: no number that a request can send reaches a worker that cannot hold it.

In: the sampling parameters of any request, whatever route or model it came for. Out: a copy whose numbers fit every
process behind, or an error that names the field. A number that means the same as its bound is brought there; one that
means nothing is refused. The engine itself must not be asked: an exception in a step ends it, and every request in it.

vLLM 0.32 places: `SamplingParams` and its `verify`; `vllm.v1.worker.gpu.sample.logit_bias` (how much a slot of model
runner V2 holds).
"""

import math
from collections.abc import Collection
from copy import copy
from dataclasses import replace

from vllm import envs
from vllm.engine.protocol import EngineClient
from vllm.sampling_params import SamplingParams
from vllm.v1.worker.gpu.sample.logit_bias import (
    MAX_NUM_ALLOWED_TOKEN_IDS,
    MAX_NUM_LOGIT_BIAS_TOKENS,
    MAX_NUM_STOP_TOKEN_IDS,
)

from softspec.engine.wire import KEY, MAX_TOP_LOGPROBS
from softspec.errors import FieldError

_INT64 = range(-(2**63), 2**63)
_FLOAT32_TINY = 2.0**-126
"""The smallest normal float32; smaller ones become 0 on some devices."""
_LARGEST_PENALTY = 2.0**64
"""Logits stay finite when they are multiplied or divided by it."""
_LARGEST_BIAS = 100.0
"""OpenAI's, and vLLM's for its own routes: enough to force or to ban a token."""
_ENGINE_KEYS = ("kv_transfer_params", "ec_transfer_params")
"""Keys of `extra_args` from which vLLM itself reads, as from objects."""


class Gate:
    """What this engine can be asked; the limits of its model and of its model runner."""

    def __init__(self, engine: EngineClient) -> None:
        self._config = engine.vllm_config
        self._engine = engine

    def admit(self, params: SamplingParams, priority: object = 0) -> SamplingParams:
        """The parameters as the engine may have them; the caller's stay as they are.

        Raises:
            FieldError: a number has no meaning here; the message names the field.
            VLLMValidationError: vLLM's own checks say so.
        """
        _refuse_reserved(params.extra_args or {})
        _require_int64("priority", priority)
        admitted = copy(params)
        admitted.seed = _seed_of(params)
        self._bring_into_range(admitted)
        admitted.logit_bias = _finite_biases(params.logit_bias)
        if params.allowed_token_ids:
            admitted.allowed_token_ids = list(dict.fromkeys(params.allowed_token_ids))
        for field in ("logprobs", "prompt_logprobs"):
            if (getattr(params, field) or 0) > MAX_TOP_LOGPROBS:
                raise FieldError(
                    field,
                    f"'{field}' is {getattr(params, field)}: expected a number from 0 to {MAX_TOP_LOGPROBS}",
                )
        # Without what compiles grammars, which vLLM does when it takes the request.
        admitted.verify(self._config.model_config, self._config.speculative_config, None, None)
        if self._config.use_v2_model_runner:
            self._require_slot(admitted)
        return admitted

    def _bring_into_range(self, params: SamplingParams) -> None:
        """Lower numbers to the bound above which they all mean the same: the vocabulary, or the longest sequence."""
        vocab_size = self._config.model_config.get_vocab_size()
        longest = self._config.model_config.max_model_len
        params.top_k = min(params.top_k, vocab_size)
        params.top_p = max(params.top_p, _FLOAT32_TINY)
        params.min_p = params.min_p if params.min_p >= _FLOAT32_TINY else 0.0
        params.repetition_penalty = min(
            max(params.repetition_penalty, 1 / _LARGEST_PENALTY), _LARGEST_PENALTY
        )
        for field in ("max_tokens", "min_tokens", "stream_interval", "thinking_token_budget"):
            value = getattr(params, field)
            if value is not None:
                setattr(params, field, min(value, longest))
        if (detection := params.repetition_detection) is not None:
            params.repetition_detection = replace(
                detection, **{name: min(value, longest) for name, value in vars(detection).items()}
            )

    def _require_slot(self, params: SamplingParams) -> None:
        """Refuse what does not fit into a slot of model runner V2, whose worker would raise and so end the engine."""
        probe, processor = params.clone(), self._engine.input_processor
        probe.update_from_generation_config(
            processor.generation_config_fields, self._engine.renderer.get_eos_token_id()
        )
        if processor.tokenizer is not None:
            probe.update_from_tokenizer(processor.tokenizer)
        stops: Collection[int] = probe.all_stop_token_ids if params.min_tokens else ()
        bad_tokens = sum(map(len, probe.bad_words_token_ids or ()))
        for field, found, most in (
            ("allowed_token_ids", len(params.allowed_token_ids or ()), MAX_NUM_ALLOWED_TOKEN_IDS),
            ("logit_bias", len(params.logit_bias or ()), MAX_NUM_LOGIT_BIAS_TOKENS),
            ("stop_token_ids", len(stops), MAX_NUM_STOP_TOKEN_IDS),
            ("bad_words", bad_tokens, envs.VLLM_MAX_BAD_WORDS_TOTAL_TOKENS),
        ):
            if found > most:
                raise FieldError(field, f"'{field}' has {found} tokens: this engine takes at most {most}")


def _refuse_reserved(extra_args: dict[str, object]) -> None:
    if KEY in extra_args:
        raise FieldError(f"vllm_xargs.{KEY}", f"vllm_xargs.{KEY} is reserved for the server: leave it out")
    for key in _ENGINE_KEYS:
        if not isinstance(extra_args.get(key) or {}, dict):
            raise FieldError(key, f"'{key}' is {extra_args[key]!r}: expected an object")


def _require_int64(field: str, value: object) -> None:
    if value not in _INT64:
        raise FieldError(field, f"'{field}' is {value}: expected a whole number of 64 bits")


def _seed_of(params: SamplingParams) -> int | None:
    """The seed of the first sample; that of the last, `n` - 1 more, must fit into 64 bits too."""
    seed, n = params.seed, params.n
    if seed is None or (seed in _INT64 and seed + n - 1 in _INT64):
        return seed
    return seed % (2**63 - n + 1)


def _finite_biases(biases: dict[int, float] | None) -> dict[int, float] | None:
    if biases is None:
        return None
    for token, bias in biases.items():
        if not math.isfinite(bias):
            raise FieldError(
                "logit_bias",
                f"'logit_bias' of token {token} is {bias}: expected a number from -{_LARGEST_BIAS:.0f} to "
                f"{_LARGEST_BIAS:.0f}",
            )
    return {token: min(max(bias, -_LARGEST_BIAS), _LARGEST_BIAS) for token, bias in biases.items()}
