"""Request fields that cannot be right on a mixture, refused by name instead of ignored.

In: a parsed OpenAI request. Out: nothing, or a FieldError. The reasons stand in the table; those of fields that vLLM
does not know are in `foreign.py`.
"""

from collections.abc import Mapping
from typing import ClassVar, Protocol

from softspec.engine.wire import MAX_TOP_LOGPROBS
from softspec.errors import FieldError
from softspec.server.chat.foreign import is_set, objection
from softspec.server.chat.wire import EXTENSION


class StreamOptions(Protocol):
    """What a caller wants of a stream beside its text."""

    include_usage: bool | None
    continuous_usage_stats: bool | None


class EnsembleRequest(Protocol):
    """What all of vLLM's request models have in common; unknown fields land in `model_extra`."""

    model: str | None
    stream: bool | None
    vllm_xargs: dict[str, object] | None
    model_fields: ClassVar[Mapping[str, object]]

    @property
    def model_extra(self) -> dict[str, object] | None: ...


class OpenAIRequest(EnsembleRequest, Protocol):
    """What vLLM's chat and completion request models have in common."""

    n: int | None
    echo: bool | None
    stream_options: StreamOptions | None
    request_id: str


_REASONS = {
    "prompt_logprobs": "the prompt has one likelihood per member and none of the mixture",
    "use_beam_search": "a beam would need its own members at every step; sample with n instead",
    "logprob_token_ids": "the members do not collect log-probabilities of chosen tokens; use top_logprobs",
    "prompt_embeds": "the members need token ids",
    "kv_transfer_params": "the members' caches cannot be transferred",
    "ec_transfer_params": "the members' caches cannot be transferred",
    "watermarking": "the token is drawn from the mixture, not by the engine's sampler",
}


def refuse_reserved(request: EnsembleRequest) -> None:
    """Refuse, whatever the model, the field by which the server talks to its engine: it is not a caller's."""
    if request.vllm_xargs and "softspec" in request.vllm_xargs:
        raise FieldError(
            "vllm_xargs.softspec", "vllm_xargs.softspec is reserved: use the 'uncertainty' field instead"
        )


def refuse_extension(request: EnsembleRequest) -> None:
    """Refuse the `uncertainty` field for a member or the base: one model cannot disagree with itself."""
    if _extras(request).get(EXTENSION) is not None:
        raise FieldError(
            EXTENSION,
            f"'{EXTENSION}' was given for the single model '{request.model}': expected an ensemble's name; "
            "remove the field or ask the ensemble",
        )


def refuse_unsupported(request: EnsembleRequest) -> None:
    """Refuse, for an ensemble, everything that the mixture cannot honour, and every field nobody knows."""
    for field, reason in _REASONS.items():
        if is_set(getattr(request, field, None)):
            raise FieldError(field, f"'{field}' is not supported for ensembles: {reason}")
    _refuse_echoed_logprobs(request)
    for field in ("logprobs", "top_logprobs"):
        asked = getattr(request, field, None) or 0
        if not 0 <= asked <= MAX_TOP_LOGPROBS:
            raise FieldError(field, f"'{field}' is {asked}: expected a number from 0 to {MAX_TOP_LOGPROBS}")
    known = (EXTENSION, *type(request).model_fields)
    for field, value in _extras(request).items():
        problem = (
            None if field == EXTENSION else objection(field, value, getattr(request, "n", None) or 1, known)
        )
        if problem is not None:
            raise FieldError(field, problem)


def _refuse_echoed_logprobs(request: EnsembleRequest) -> None:
    # To echo, vLLM's chat handler always asks for prompt_logprobs; its completion handler only with logprobs.
    is_chat = hasattr(request, "messages")
    if getattr(request, "echo", None) and (is_chat or getattr(request, "logprobs", None) is not None):
        raise FieldError(
            "echo", f"'echo' needs prompt_logprobs here: {_REASONS['prompt_logprobs']}; remove 'echo'"
        )


def _extras(request: EnsembleRequest) -> dict[str, object]:
    return request.model_extra or {}
