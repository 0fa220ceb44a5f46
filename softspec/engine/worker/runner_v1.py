"""The ensemble sampler of model runner V1.

In: a step's logits, and what the runner keeps of its requests. Out: vLLM's sampler output, with groups in it. Knows
where model runner V1 keeps things; the arithmetic is in `mixing.py`.

The leader's row becomes the mixture after vLLM's masks, which act on the rows of all members, and before its penalties,
which act on the mixture as on one model's logits; the draw from it is ours, and all K rows get the drawn token.

vLLM 0.32 places: `vllm.v1.sample.sampler.Sampler`; of the runner `input_batch`, `requests`, `discard_request_mask`.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from torch import Tensor
from vllm.v1.outputs import LogprobsTensors, SamplerOutput
from vllm.v1.sample.metadata import SamplingMetadata
from vllm.v1.sample.sampler import Sampler

from softspec.engine.wire import Seat
from softspec.engine.worker.mixing import GroupMixer
from softspec.engine.worker.rows import GroupRows, complete_groups, seat_of

if TYPE_CHECKING:
    from vllm.v1.attention.backend import CommonAttentionMetadata
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner


class EnsembleSampler(Sampler):
    """vLLM's sampler with groups in it; steps without groups pass straight through."""

    def __init__(self, runner: "GPUModelRunner") -> None:
        super().__init__(runner.sampler.logprobs_mode, runner.sampler.use_fp64_gumbel)
        self.mixer = GroupMixer()
        self._runner = runner
        self._groups: list[GroupRows] = []

    def forward(
        self, logits: Tensor, sampling_metadata: SamplingMetadata, *args: object, **kwargs: object
    ) -> SamplerOutput:
        """Draw and report a token per row; rows of one group get the same."""
        # The runner keeps a preempted request and lets a finished one go.
        self.mixer.forget(self.mixer.group_ids - self._runner.requests.keys())
        self._groups = complete_groups(self._drawing_members())
        metadata = replace(sampling_metadata, max_num_logprobs=self._num_logprobs())
        output = super().forward(logits, metadata, *args, **kwargs)
        reported = self.mixer.report(output.logprobs_tensors, len(logits))
        if reported is not None:
            output.logprobs_tensors = LogprobsTensors(*reported)
        return output

    def apply_penalties(
        self, logits: Tensor, sampling_metadata: SamplingMetadata, output_token_ids: list[list[int]]
    ) -> Tensor:
        """Mix, then penalise: vLLM calls this when its masks and biases have acted on every row."""
        self.mixer.mix(logits, self._groups)
        return super().apply_penalties(logits, sampling_metadata, output_token_ids)

    def sample(
        self, logits: Tensor, sampling_metadata: SamplingMetadata, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor | None]:
        """Draw from logits after penalties: ours for groups, vLLM's for the other rows."""
        self.mixer.draw(logits)
        sampled, processed = super().sample(logits, sampling_metadata, *args, **kwargs)
        self.mixer.hand_out(sampled)
        return sampled, processed

    def seats_of_rows(self, step: "CommonAttentionMetadata") -> list[Seat | None]:
        """The seats of a step's rows, whether they draw or not."""
        requests = self._runner.requests
        return [
            seat_of(requests[request_id].sampling_params) for request_id in self._runner.input_batch.req_ids
        ]

    def _drawing_members(self) -> Iterator[tuple[Seat, int, int]]:
        """Seat, row and number of drawn tokens of every member in this step that is not inside its prompt."""
        requests, discarded = self._runner.requests, self._runner.discard_request_mask.np
        for row, request_id in enumerate(self._runner.input_batch.req_ids):
            request = requests[request_id]
            seat = seat_of(request.sampling_params)
            if seat is not None and not discarded[row]:
                yield seat, row, len(request.output_token_ids)

    def _num_logprobs(self) -> int | None:
        """How many log-probabilities rows outside groups ask for; leaders' rows are written by the mixer."""
        asked, requests = self._runner.input_batch.num_logprobs, self._runner.requests
        others = (
            n for request_id, n in asked.items() if seat_of(requests[request_id].sampling_params) is None
        )
        return max(others, default=None)
