"""The worker's side of a request without a model: vLLM's real batch and sampler of model runner V1, ours in them.

In: a request as the engine core has it. Out: the tokens it draws from random logits, with the log-probability rows that
go back for it. What raises here would end an engine.
"""

from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from vllm.config import VllmConfig
from vllm.v1.request import Request
from vllm.v1.sample.logits_processor import build_logitsprocs
from vllm.v1.sample.sampler import Sampler
from vllm.v1.worker.gpu_input_batch import CachedRequestState, InputBatch

from softspec.engine.core.requests import member_requests
from softspec.engine.wire import KEY, GroupSpec
from softspec.engine.worker.runner_v1 import EnsembleSampler

MAX_ROWS = 8
CPU = torch.device("cpu")


class WorkerV1:
    """One request at a time: its rows enter the batch, draw, and leave it."""

    def __init__(self, config: VllmConfig, seed: int = 0) -> None:
        longest, self.vocab_size = config.model_config.max_model_len, config.model_config.get_vocab_size()
        self.requests: dict[str, CachedRequestState] = {}
        self.input_batch = InputBatch(
            MAX_ROWS,
            longest,
            longest,
            CPU,
            self.vocab_size,
            [16],
            [longest],
            logitsprocs=build_logitsprocs(config, CPU, False, False),
        )
        self.sampler = Sampler()
        self.discard_request_mask = SimpleNamespace(np=np.zeros(MAX_ROWS, dtype=bool))
        self._ensembles: Any = EnsembleSampler(self)
        self._random = torch.Generator().manual_seed(seed)

    def draw(self, request: Request, steps: int) -> list[tuple[int, Tensor | None]]:
        """Tokens of a request and the log-probability row of each, if any."""
        wire = (request.sampling_params.extra_args or {}).get(KEY) if request.sampling_params else None
        rows = [request] if wire is None else member_requests(request, GroupSpec.from_wire(wire), 0)
        for row in rows:
            self._enter(row)
        try:
            return [self._step(len(rows)) for _ in range(steps)]
        finally:
            for row in rows:
                self.input_batch.remove_request(row.request_id)
                del self.requests[row.request_id]
            self.input_batch.condense()
            self.input_batch.refresh_metadata()

    def _enter(self, row: Request) -> None:
        state = CachedRequestState(
            row.request_id, row.prompt_token_ids, [], row.sampling_params, None, ([0],), 0, []
        )
        self.requests[row.request_id] = state
        self.input_batch.add_request(state)
        self.input_batch.refresh_metadata()

    def _step(self, num_rows: int) -> tuple[int, Tensor | None]:
        logits = 5 * torch.randn(num_rows, self.vocab_size, generator=self._random)
        output = self._ensembles(logits, self.input_batch.sampling_metadata)
        tokens = output.sampled_token_ids[:, 0].tolist()
        assert len(set(tokens)) == 1, tokens
        for state in self.requests.values():
            state.output_token_ids.append(tokens[0])
        reported = output.logprobs_tensors
        return tokens[0], None if reported is None else reported.logprobs[0]
