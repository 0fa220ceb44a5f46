"""The ensemble sampler of model runner V2.

In: a step's logits and batch. Out: vLLM's sampler output, with groups in it. Knows where model runner V2 keeps things;
the arithmetic is in `mixing.py`.

As in V1 the leader's row becomes the mixture after vLLM's masks and before its penalties, by a place in vLLM's list of
logits processors; the draw from it is ours, and all K rows get the drawn token. A request lives in a slot; a preempted
one leaves it and comes back as a new request whose earlier output counts as prefill. Tested inside vLLM's real V2
classes and engine on a CPU, by Triton's interpreter; not yet run on a GPU.

vLLM 0.32 places: `vllm.v1.worker.gpu.sample.sampler.Sampler`; of the runner `finish_requests`.
"""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from torch import Tensor
from vllm.sampling_params import SamplingParams
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.outputs import LogprobsTensors
from vllm.v1.worker.gpu.input_batch import InputBatch
from vllm.v1.worker.gpu.sample.bad_words import BadWordsState
from vllm.v1.worker.gpu.sample.logit_bias import LogitBiasState
from vllm.v1.worker.gpu.sample.logits_processor.interface import LogitsContext, LogitsProcessor
from vllm.v1.worker.gpu.sample.output import SamplerOutput
from vllm.v1.worker.gpu.sample.sampler import Sampler
from vllm.v1.worker.gpu.sample.states import NO_LOGPROBS

from softspec.engine.wire import Seat
from softspec.engine.worker.mixing import GroupMixer
from softspec.engine.worker.rows import GroupRows, complete_groups, seat_of

if TYPE_CHECKING:
    from vllm.v1.attention.backend import CommonAttentionMetadata
    from vllm.v1.worker.gpu.model_runner import GPUModelRunner


class EnsembleSampler(Sampler):
    """vLLM's sampler with groups in it; steps without groups pass straight through."""

    def __init__(self, runner: "GPUModelRunner") -> None:
        # The same state objects as vLLM's sampler: they are large, and its own parts hold them too.
        self.__dict__.update(vars(runner.sampler))
        self.mixer = GroupMixer()
        self._seats: dict[int, Seat | None] = {}
        self._groups: list[GroupRows] = []
        theirs: list[LogitsProcessor] = runner.sampler.logits_processors
        masks = [each for each in theirs if isinstance(each, LogitBiasState | BadWordsState)]
        others = [each for each in theirs if each not in masks]
        self.logits_processors = [*masks, _Mixing(self), *others]
        runner.finish_requests = self._forgetting(runner.finish_requests)

    def add_request(self, req_idx: int, sampling_params: SamplingParams) -> None:
        """Take a request into a slot, and remember its seat in its group."""
        super().add_request(req_idx, sampling_params)
        self._seats[req_idx] = seat_of(sampling_params)
        if self._seats[req_idx] is not None:
            # Leaders' rows are written by the mixer.
            self.sampling_states.num_logprobs[req_idx] = NO_LOGPROBS

    def __call__(self, logits: Tensor, input_batch: InputBatch) -> SamplerOutput:
        """Draw and report a token per row; rows of one group get the same."""
        self._groups = complete_groups(self._drawing_members(input_batch))
        output = super().__call__(logits, input_batch)
        reported = self.mixer.report(output.logprobs_tensors, len(logits))
        if reported is not None:
            output.logprobs_tensors = LogprobsTensors(*reported)
        return output

    def mix(self, logits: Tensor) -> None:
        """Put the mixture into the leaders' rows of this step."""
        self.mixer.mix(logits, self._groups)

    def seats_of_rows(self, step: "CommonAttentionMetadata") -> list[Seat | None]:
        """The seats of a step's rows, whether they draw or not."""
        return [self._seats.get(slot) for slot in step.req_idx.tolist()]

    def _sample_random(
        self, processed_logits: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        self.mixer.draw(processed_logits)
        sampled, processed = super()._sample_random(processed_logits, *args, **kwargs)
        self.mixer.hand_out(sampled)
        return sampled, processed

    def _drawing_members(self, batch: InputBatch) -> Iterator[tuple[Seat, int, int]]:
        """Seat, row and number of drawn tokens of every member in this step that is not inside its prefill.

        Without speculative decoding the lengths on the host are exact, so nothing waits for the device.
        """
        lengths = batch.seq_lens_cpu_upper_bound.tolist()
        prompts, prefills = self.req_states.prompt_len.np, self.req_states.prefill_len.np
        for row, slot in enumerate(batch.idx_mapping_np.tolist()):
            seat = self._seats.get(slot)
            if seat is not None and lengths[row] >= prefills[slot]:
                yield seat, row, lengths[row] - int(prompts[slot])

    def _forgetting(self, finish: Callable[[SchedulerOutput], None]) -> Callable[[SchedulerOutput], None]:
        """The runner's `finish_requests`, made to forget groups that are done; preempted ones keep their posterior."""

        def finish_requests(scheduler_output: SchedulerOutput) -> None:
            self.mixer.forget(scheduler_output.finished_req_ids)
            finish(scheduler_output)

        return finish_requests


class _Mixing(LogitsProcessor):
    """The place among vLLM's logits processors at which groups are mixed."""

    def __init__(self, sampler: EnsembleSampler) -> None:
        self._sampler = sampler

    def add_request(self, req_idx: int, sampling_params: SamplingParams) -> bool:
        """Whether the request is one of a group's; vLLM leaves out its processors where none has work."""
        return seat_of(sampling_params) is not None

    def apply(self, logits: Tensor, ctx: LogitsContext) -> Tensor:
        """Mix, now that hard constraints have acted on every row."""
        self._sampler.mix(logits)
        return logits
