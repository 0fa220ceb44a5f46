"""The rows of a step that compute the lower layers, as tensors, and vLLM's attention metadata for them.

In: the source of each row, and the metadata of the whole step. Out: index lists between the step's tokens and the kept
ones, and metadata of the kept rows alone. Knows no layers.

vLLM 0.32 place: `vllm.v1.attention.backend.CommonAttentionMetadata`.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from vllm.v1.attention.backend import CommonAttentionMetadata

from softspec.engine.worker.lower.spans import Span


@dataclass(frozen=True)
class Kept:
    """R rows and T tokens of a step's N tokens, on a CPU: elsewhere nothing is shared.

    rows: (R,), of the step's rows. tokens: (T,), of the step's tokens. spread: (N,), the kept token that computes for
    each of the step's. starts: (R + 1,), int32, where each row's tokens begin among the kept ones. longest: the most
    tokens of a row.
    """

    rows: Tensor
    tokens: Tensor
    spread: Tensor
    starts: Tensor
    longest: int

    @staticmethod
    def of(spans: Sequence[Span], chosen: Sequence[int]) -> "Kept":
        """The rows that are their own source."""
        rows = [row for row, source in enumerate(chosen) if source == row]
        counts = [span.tokens for span in spans]
        begins = _begins(counts)
        starts = _begins([counts[row] for row in rows])
        start_of = dict(zip(rows, starts, strict=False))
        tokens = [token for row in rows for token in range(begins[row], begins[row] + counts[row])]
        spread = [
            token
            for span, source in zip(spans, chosen, strict=True)
            for first in [start_of[source] + span.first - spans[source].first]
            for token in range(first, first + span.tokens)
        ]
        return Kept(
            rows=torch.tensor(rows),
            tokens=torch.tensor(tokens),
            spread=torch.tensor(spread),
            starts=torch.tensor(starts, dtype=torch.int32),
            longest=max(counts[row] for row in rows),
        )

    def narrowed(self, step: CommonAttentionMetadata) -> CommonAttentionMetadata:
        """The metadata of a step with the kept rows alone."""
        return replace(
            step,
            query_start_loc=self.starts,
            query_start_loc_cpu=self.starts,
            seq_lens=step.seq_lens[self.rows],
            seq_lens_cpu_upper_bound=_at(step.seq_lens_cpu_upper_bound, self.rows),
            num_reqs=len(self.rows),
            num_actual_tokens=len(self.tokens),
            max_query_len=self.longest,
            block_table_tensor=step.block_table_tensor[self.rows],
            slot_mapping=step.slot_mapping[self.tokens],
            positions=_at(step.positions, self.tokens),
            is_prefilling=_at(step.is_prefilling, self.rows),
            rswa_prefix_lens=_at(step.rswa_prefix_lens, self.rows),
            req_idx=None if step.req_idx is None else step.req_idx[self.rows.numpy()],
            _num_computed_tokens_cache=None,
            _token_to_req_indices_cache=None,
        )


def _begins(counts: Iterable[int]) -> list[int]:
    begins = [0]
    for count in counts:
        begins.append(begins[-1] + count)
    return begins


def _at(values: Tensor | None, places: Tensor) -> Tensor | None:
    return None if values is None else values[places]
