"""What a request for an ensemble becomes on its way to the engine, and what its outputs become on their way back.

In: the caller's sampling parameters, and vLLM's outputs with telemetry in their log-probabilities. Out: parameters that
carry a group; outputs as from one model, and a choice's trace. Knows no engine and no other request.

vLLM 0.32 places: `SamplingParams` (`extra_args`, `logprobs`, `flat_logprobs`), `FlatLogprobs`, `CompletionOutput`.
"""

import secrets
from copy import copy
from dataclasses import replace

from vllm.logprobs import FlatLogprobs, Logprob
from vllm.outputs import CompletionOutput
from vllm.sampling_params import RequestOutputKind, SamplingParams

from softspec.engine.trace import ChoiceTrace, RequestTrace
from softspec.engine.wire import (
    KEY,
    LOCKSTEP_FAILED,
    MIXING_FAILED,
    NO_TOKEN_LEFT,
    GroupSpec,
    unpack,
    unpack_watched,
)
from softspec.errors import ConfigError, EngineError, FieldError, LockstepError, MixingError
from softspec.maths.answer import TokenUncertainty


def group_params(params: SamplingParams, spec: GroupSpec, is_traced: bool = True) -> SamplingParams:
    """The parameters that carry a group to the scheduler; `seed` is drawn if the caller gave none.

    Not traced, its numbers are for nobody but whoever asked for log-probabilities.
    """
    num_top = params.logprobs or 0
    group = copy(params)
    has_readers = params.logprobs is not None
    told = replace(spec, num_top=num_top, has_readers=has_readers, is_traced=is_traced or has_readers)
    group.extra_args = {**(params.extra_args or {}), KEY: told.to_wire()}
    group.logprobs = num_top + spec.num_columns
    group.flat_logprobs = True
    group.seed = secrets.randbelow(2**53) if params.seed is None else params.seed
    return group


def split_position(
    logprobs: FlatLogprobs, position: int, spec: GroupSpec, num_top: int
) -> tuple[TokenUncertainty, dict[int, Logprob]]:
    """One token's telemetry, and the mixture log-probabilities that the caller asked for."""
    start = logprobs.start_indices[position]
    end = start + 1 + num_top
    row = _row(logprobs, position)
    token = unpack(logprobs.token_ids[row], logprobs.logprobs[row], num_top, spec.num_members)
    top = {
        logprobs.token_ids[i]: Logprob(logprobs.logprobs[i], logprobs.ranks[i], logprobs.decoded_tokens[i])
        for i in range(start, end)
    }
    return token, top


def _row(logprobs: FlatLogprobs, position: int) -> slice:
    return slice(logprobs.start_indices[position], logprobs.end_indices[position])


def refuse_unsupported(params: SamplingParams) -> None:
    """Raise if a request asks for what a mixture cannot give.

    Raises:
        FieldError: it does.
    """
    extra_args = params.extra_args or {}
    found = {
        "prompt_logprobs": params.prompt_logprobs is not None,
        "prompt_logprob_token_ids": params.prompt_logprob_token_ids is not None,
        "logprob_token_ids": bool(params.logprob_token_ids),
        "logprobs": params.logprobs == -1,
        "trace_decode_token_ids": bool(params.trace_decode_token_ids),
        "watermarking": bool(params.watermarking),
        "kv_transfer_params": bool(extra_args.get("kv_transfer_params")),
        "ec_transfer_params": bool(extra_args.get("ec_transfer_params")),
    }
    for field, asked in found.items():
        if asked:
            raise FieldError(
                field, f"'{field}' is not available for an ensemble: ask a base model, or leave it out"
            )


def failure_of(completion: CompletionOutput, request_id: str) -> EngineError | ConfigError | None:
    """Why our part of the engine ended a request; None for all other ends, vLLM's own errors among them."""
    if completion.finish_reason != "error":
        return None
    if completion.stop_reason == LOCKSTEP_FAILED:
        return LockstepError(
            f"request {request_id} was ended because its members came apart: send it again, and report it with the "
            "server's log if it happens again"
        )
    if completion.stop_reason == MIXING_FAILED:
        return MixingError(
            f"request {request_id} was ended because its members could not be mixed: report it with its fields and "
            "the server's log"
        )
    if completion.stop_reason == NO_TOKEN_LEFT:
        return ConfigError(
            "the request's own constraints leave no token that may come next: loosen its grammar, allowed_token_ids, "
            "bad_words, min_tokens or logit_bias of -100"
        )
    return None


def open_choices(trace: RequestTrace | None, count: int) -> list[ChoiceTrace]:
    """One trace per sample, in the order in which the requests of a trace come."""
    choices = [ChoiceTrace(judge_of=trace.judge_of if trace else None) for _ in range(count)]
    if trace is not None:
        trace.choices |= dict(enumerate(choices, start=len(trace.choices)))
    return choices


def describe(choices: list[ChoiceTrace], spec: GroupSpec, params: SamplingParams) -> None:
    """Fill in what is known once the members are chosen; vLLM seeds sample i of n with `seed + i`."""
    assert params.seed is not None
    for i, choice in enumerate(choices):
        choice.log_weights, choice.weights_rule, choice.seed = (
            spec.log_weights,
            spec.weights_rule,
            params.seed + i,
        )
        choice.calibration = spec.calibration


def record(
    completion: CompletionOutput, params: SamplingParams, spec: GroupSpec, choice: ChoiceTrace
) -> None:
    """Move the telemetry of an output into its choice, and leave the log-probabilities that the caller asked for."""
    logprobs = completion.logprobs
    if logprobs is None:  # nobody reads them
        completion.cumulative_logprob = None
        return
    assert isinstance(logprobs, FlatLogprobs)
    split = [split_position(logprobs, i, spec, params.logprobs or 0) for i in range(len(logprobs))]
    seen = 0 if params.output_kind == RequestOutputKind.DELTA else len(choice.tokens)
    if spec.watched:
        spec = replace(spec, num_top=params.logprobs or 0)
        for i in range(seen, len(logprobs)):
            row = _row(logprobs, i)
            found = logprobs.token_ids[row], logprobs.logprobs[row]
            choice.watched.append(unpack_watched(*found, spec, len(choice.watched)))
    choice.tokens += [token for token, _ in split[seen:]]
    if params.logprobs is None:
        completion.logprobs = completion.cumulative_logprob = None
        return
    completion.logprobs = FlatLogprobs() if params.flat_logprobs else []
    completion.logprobs.extend([top for _, top in split])
