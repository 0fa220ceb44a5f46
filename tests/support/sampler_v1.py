"""vLLM's own sampler of model runner V1 on tensors, with or without groups in it: no model, no engine.

In: requests and a step's logits. Out: vLLM's sampler output, and the distribution from which each token was drawn.
"""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor
from vllm import SamplingParams
from vllm.config import VllmConfig
from vllm.v1.outputs import SamplerOutput
from vllm.v1.request import Request
from vllm.v1.sample.logits_processor import build_logitsprocs
from vllm.v1.sample.sampler import Sampler
from vllm.v1.worker.gpu_input_batch import CachedRequestState, InputBatch

from softspec.engine.core.requests import member_requests
from softspec.engine.wire import Adapter, GroupSpec, unpack
from softspec.engine.worker import mixing
from softspec.engine.worker.runner_v1 import EnsembleSampler
from softspec.maths.answer import TokenUncertainty
from softspec.maths.sampling import filter_logprobs

CPU = torch.device("cpu")
PROMPT = (3, 1, 4, 1, 5)


class SamplerV1:
    """The part of model runner V1 around its sampler; requests are rows in the order in which they came."""

    def __init__(
        self, vocab_size: int, with_groups: bool = True, logprobs_mode: Any = "raw_logprobs"
    ) -> None:
        processors = build_logitsprocs(VllmConfig(), CPU, is_pin_memory=False, is_pooling_model=False)
        self.input_batch = InputBatch(
            16, 64, 64, CPU, vocab_size, block_sizes=[16], max_num_blocks_per_req=[4], logitsprocs=processors
        )
        self.requests: dict[str, CachedRequestState] = {}
        self.discard_request_mask = SimpleNamespace(np=np.zeros(16, dtype=bool))
        self.sampler = Sampler(logprobs_mode)
        if with_groups:
            self.sampler = EnsembleSampler(self)
        self._specs: dict[str, GroupSpec] = {}

    def enter(self, request_id: str, params: SamplingParams, output: Sequence[int] = ()) -> None:
        """Add one row."""
        state = CachedRequestState(
            req_id=request_id,
            prompt_token_ids=list(PROMPT),
            mm_features=[],
            sampling_params=params,
            generator=None,
            block_ids=([0],),
            num_computed_tokens=len(PROMPT) + len(output),
            output_token_ids=list(output),
            mrope_positions=None,
        )
        self.requests[request_id] = state
        self.input_batch.add_request(state)

    def enter_group(
        self,
        request_id: str,
        log_weights: Sequence[float],
        params: SamplingParams,
        output: Sequence[int] = (),
    ) -> None:
        """Add the rows of a group, as the scheduler sends them."""
        adapters = tuple(Adapter(f"{request_id}/{k}", 1 + k, "path") for k in range(len(log_weights)))
        spec = GroupSpec(adapters, tuple(log_weights), "fixed", block_size=None, num_top=params.logprobs or 0)
        self._specs[request_id] = spec
        for member in member_requests(Request(request_id, list(PROMPT), params, None), spec, 0):
            assert member.sampling_params is not None
            self.enter(member.request_id, member.sampling_params, output)

    def step(self, logits: Tensor) -> SamplerOutput:
        """Draw a token for every row."""
        self.input_batch.refresh_metadata()
        return self.sampler(logits.clone(), self.input_batch.sampling_metadata)

    def drawn_from(self, logits: Tensor) -> tuple[Tensor, SamplerOutput]:
        """The log-probabilities (G, V) from which the groups of one size drew their tokens."""
        with patch.object(mixing, "draw_tokens", wraps=mixing.draw_tokens) as draw:
            output = self.step(logits)
        (scores,), settings = draw.call_args
        settings = {name: settings[name] for name in ("temperature", "top_k", "top_p", "min_p")}
        return filter_logprobs(scores, **settings).log_softmax(-1), output

    def numbers(self, request_id: str, output: SamplerOutput) -> TokenUncertainty:
        """The telemetry of a group's token."""
        row, spec = self.input_batch.req_id_to_index[request_id], self._specs[request_id]
        assert output.logprobs_tensors is not None
        tensors = output.logprobs_tensors
        ids, found = tensors.logprob_token_ids[row].tolist(), tensors.logprobs[row].tolist()
        assert ids[0] == int(output.sampled_token_ids[row])
        return unpack(ids, found, spec.num_top, spec.num_members)


def distribution(output: SamplerOutput, vocab_size: int, row: int = 0) -> Tensor:
    """The log-probabilities (V,) that a request with `logprobs` = V was told."""
    assert output.logprobs_tensors is not None
    token_ids = output.logprobs_tensors.logprob_token_ids[row, 1 : 1 + vocab_size].long()
    values = output.logprobs_tensors.logprobs[row, 1 : 1 + vocab_size]
    return torch.full((vocab_size,), torch.nan).scatter(0, token_ids, values)
