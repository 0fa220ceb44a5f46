"""The vLLM requests behind one ensemble request: a leader, its siblings and the trunk.

In: the request that arrived. Out: `Request`s that vLLM schedules like any other. Decides nothing about when.

vLLM 0.32 place: `vllm.v1.request.Request` and its block hashes.
"""

import math
from copy import copy

from vllm.lora.request import LoRARequest
from vllm.sampling_params import SamplingParams
from vllm.v1.request import Request

from softspec.engine.wire import KEY, Adapter, GroupSpec, Seat
from softspec.maths.sampling import SamplingSpec

BAN = -100.0
"""A `logit_bias` of this or less forbids its token to every member, as OpenAI's API says of -100; what is above it is
added to the mixture's score."""

_TRUNK_TAIL = 2
"""Tokens after the shared ones that a trunk carries: it computes one, so that it has work even when every shared block
is cached, and stops before the other, so that it never samples."""


def member_requests(leader: Request, spec: GroupSpec, shared_hashes: int) -> list[Request]:
    """The K members of a group; `leader`, the request that arrived, becomes member 0.

    Args:
        shared_hashes: how many leading block hashes belong to prompt tokens that all members share.
    """
    params = leader.sampling_params
    assert params is not None
    prompt = leader.prompt_token_ids
    assert prompt is not None
    members = [leader] + [
        _derived(leader, f"{leader.request_id}/member-{k}", prompt, params)
        for k in range(1, spec.num_members)
    ]
    for k, member in enumerate(members):
        seat = Seat(leader.request_id, k, spec, _sampling_spec(params))
        member.sampling_params = _row_params(params, seat)
        _wear(member, spec.adapters[k], shared_hashes)
    return members


def trunk_request(leader: Request, request_id: str, shared: int) -> Request:
    """A request that computes the first `shared` prompt tokens, without an adapter."""
    tokens = list(leader.all_token_ids[:shared])
    params = SamplingParams(temperature=0.0, max_tokens=1)
    return _derived(leader, request_id, tokens + tokens[-1:] * _TRUNK_TAIL, params)


def _derived(leader: Request, request_id: str, prompt: list[int], params: SamplingParams) -> Request:
    structured = leader.structured_output_request
    return Request(
        request_id=request_id,
        prompt_token_ids=prompt,
        sampling_params=params,
        pooling_params=None,
        client_index=leader.client_index,
        arrival_time=leader.arrival_time,
        cache_salt=leader.cache_salt,
        priority=leader.priority,
        block_hasher=leader._block_hasher,
        reasoning_ended=structured.reasoning_ended if structured else None,
    )


def _sampling_spec(params: SamplingParams) -> SamplingSpec:
    biases = (params.logit_bias or {}).items()
    return SamplingSpec(
        temperature=params.temperature,
        top_k=params.top_k,
        top_p=params.top_p,
        min_p=params.min_p,
        repetition_penalty=params.repetition_penalty,
        presence_penalty=params.presence_penalty,
        frequency_penalty=params.frequency_penalty,
        seed=params.seed or 0,
        logit_bias=tuple((token_id, float(bias)) for token_id, bias in biases if bias > BAN),
    )


def _row_params(params: SamplingParams, seat: Seat) -> SamplingParams:
    """The sampling parameters with which vLLM's own sampler sees a row.

    What forbids tokens acts on the rows of all members, before they are mixed. The leader's row holds the mixture after
    that, so penalties act on it there; biases and drawing are ours alone, so vLLM's seed and temperature are off.
    """
    row = copy(params)
    row.extra_args = {KEY: seat}
    row.seed = None
    row.temperature, row.top_k, row.top_p, row.min_p = 0.0, 0, 1.0, 0.0
    banned = {token_id: -math.inf for token_id, bias in (params.logit_bias or {}).items() if not bias > BAN}
    row.logit_bias = banned or None
    if seat.member:
        row.logprobs = None
        row.repetition_penalty, row.presence_penalty, row.frequency_penalty = 1.0, 0.0, 0.0
    return row


def _wear(member: Request, adapter: Adapter, shared_hashes: int) -> None:
    """Give a member its adapter; blocks that all members share keep the base model's hashes and are always read."""
    member.lora_request = None
    member.block_hashes.clear()
    member.update_block_hashes()
    member.skip_reading_prefix_cache &= not shared_hashes
    del member.block_hashes[shared_hashes:]
    member.lora_request = LoRARequest(adapter.name, adapter.int_id, adapter.path)
    member.update_block_hashes()
