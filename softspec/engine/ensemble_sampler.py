"""Mixes the K rows of every group and draws one token for all of them.

In: one decode step's logits (rows, V). Out: vLLM's own `SamplerOutput`, in which the leader's row is the mixture with
telemetry beside it, and all K rows hold the same token. Works through vLLM's sampler, so that masks, biases and
penalties act on the mixture exactly as they would on one model's logits.

vLLM 0.32 place: `vllm.v1.sample.sampler.Sampler` (model runner V1).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from vllm.v1.outputs import LogprobsTensors, SamplerOutput
from vllm.v1.sample.metadata import SamplingMetadata
from vllm.v1.sample.sampler import Sampler

from softspec.engine.group import Seat
from softspec.engine.telemetry import pack
from softspec.mixture import update_log_weights
from softspec.sampling import draw_tokens
from softspec.uncertainty import Predictive, predict


@dataclass(frozen=True)
class GroupRows:
    """One complete group in this step: its leader's seat, its K rows in member order, tokens drawn so far."""

    seat: Seat
    rows: tuple[int, ...]
    position: int


@dataclass
class _Batch:
    """All groups of one size in this step, stacked: rows (G, K), the rest (G, ...)."""

    groups: list[GroupRows]
    rows: Tensor
    member_logprobs: Tensor
    log_weights: Tensor
    predictive: Predictive
    tokens: Tensor | None = None

    @property
    def leaders(self) -> Tensor:
        return self.rows[:, 0]


class EnsembleSampler(Sampler):
    """vLLM's sampler with a mixture in it; steps without groups pass straight through."""

    def __init__(self, inner: Sampler, find_groups: Callable[[], list[GroupRows]]) -> None:
        super().__init__(inner.logprobs_mode, inner.use_fp64_gumbel)
        self._find_groups = find_groups
        self._batches: list[_Batch] = []
        self._log_weights: dict[str, list[Tensor]] = {}

    def forget(self, group_id: str) -> None:
        """Free the prefix posterior of a finished group."""
        self._log_weights.pop(group_id, None)

    def forward(
        self, logits: Tensor, sampling_metadata: SamplingMetadata, *args: object, **kwargs: object
    ) -> SamplerOutput:
        self._batches = self._mix(logits)
        for batch in self._batches:
            logits[batch.leaders] = batch.predictive.logprobs.to(logits.dtype)
        output = super().forward(logits, sampling_metadata, *args, **kwargs)
        for batch in self._batches:
            self._conclude(batch, output.logprobs_tensors)
        return output

    def sample(
        self, logits: Tensor, sampling_metadata: SamplingMetadata, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor | None]:
        """vLLM's draw for ordinary rows; ours, from the processed mixture in the leader's row, for groups."""
        for batch in self._batches:
            batch.tokens = _draw(logits[batch.leaders], batch.groups)
        sampled, processed = super().sample(logits, sampling_metadata, *args, **kwargs)
        for batch in self._batches:
            assert batch.tokens is not None
            sampled[batch.rows] = batch.tokens[:, None].to(sampled.dtype)
        return sampled, processed

    def _mix(self, logits: Tensor) -> list[_Batch]:
        by_size: dict[int, list[GroupRows]] = {}
        for group in self._find_groups():
            by_size.setdefault(len(group.rows), []).append(group)
        return [self._mix_batch(logits, groups) for groups in by_size.values()]

    def _mix_batch(self, logits: Tensor, groups: list[GroupRows]) -> _Batch:
        rows = torch.tensor([group.rows for group in groups], device=logits.device)
        member_logprobs = logits[rows].log_softmax(-1, dtype=torch.float32)
        log_weights = torch.stack([self._weights_at(group, logits.device) for group in groups])
        prior = torch.stack([self._log_weights[group.seat.group_id][0] for group in groups])
        return _Batch(
            groups, rows, member_logprobs, log_weights, predict(member_logprobs, log_weights, prior)
        )

    def _weights_at(self, group: GroupRows, device: torch.device) -> Tensor:
        """(K,): the weights before output token `position`. A rewind (dropped output) finds its earlier weights."""
        spec = group.seat.spec
        history = self._log_weights.setdefault(
            group.seat.group_id, [torch.tensor(spec.log_weights, device=device, dtype=torch.float32)]
        )
        if spec.weights_rule == "fixed":
            return history[0]
        assert group.position < len(history), (group, len(history))
        del history[group.position + 1 :]
        return history[-1]

    def _conclude(self, batch: _Batch, tensors: LogprobsTensors | None) -> None:
        """Update the prefix posteriors and write the leaders' rows in place."""
        assert batch.tokens is not None
        assert tensors is not None
        tokens = batch.tokens[:, None]
        token_logprobs = batch.member_logprobs.gather(
            -1, tokens[:, :, None].expand(-1, batch.rows.shape[1], 1)
        )
        token_logprobs = token_logprobs.squeeze(-1)
        updated = update_log_weights(batch.log_weights, token_logprobs)
        for group, weights in zip(batch.groups, updated, strict=True):
            if group.seat.spec.weights_rule == "prefix_posterior":
                self._log_weights[group.seat.group_id].append(weights)
        _write_rows(batch, pack(batch.predictive, token_logprobs), tensors)


def _draw(processed: Tensor, groups: list[GroupRows]) -> Tensor:
    """(G,) token ids from the (G, V) mixtures after masks, biases and penalties."""
    sampling = [group.seat.sampling for group in groups]
    return draw_tokens(
        processed.float(),
        temperature=torch.tensor([spec.temperature for spec in sampling]),
        top_k=torch.tensor([spec.top_k for spec in sampling]),
        top_p=torch.tensor([spec.top_p for spec in sampling]),
        min_p=torch.tensor([spec.min_p for spec in sampling]),
        seeds=torch.tensor([spec.seed for spec in sampling]),
        positions=torch.tensor([group.position for group in groups]),
    )


def _write_rows(batch: _Batch, numbers: Tensor, tensors: LogprobsTensors) -> None:
    """Put each leader's telemetry behind the columns that its caller asked for."""
    num_top = torch.tensor([group.seat.spec.num_top for group in batch.groups], device=numbers.device)
    columns = 1 + num_top[:, None] + torch.arange(numbers.shape[1], device=numbers.device)
    tensors.logprobs[batch.leaders[:, None], columns] = numbers
