"""LoRA on a CPU: each row gets its own adapter, rows without one get none, and nothing is copied per row.

In: a step's activations, and which adapter each row wears. Out: the adapters' contributions, added in place. Knows
vLLM's LoRA layers and their slots, and nothing of groups.

vLLM 0.32's CPU wrapper gathers a copy of A and B for every token of every layer, and gives a token without an adapter
the last slot's. Here decode rows go through one compiled loop per layer, prompts through one matrix product per
adapter, and layers that no adapter touches (the vocabulary's, or those that were not trained) are left out.

vLLM 0.32 places: `PunicaWrapperCPU` (every LoRA layer holds a reference to it), `update_metadata` (called whenever rows
or slots change), and the layers' stacked weights, A (slots, 1, rank, in) and B (slots, 1, out, rank) per slice.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numba
import numpy as np
import torch
from torch import Tensor
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

if TYPE_CHECKING:
    from vllm.lora.layers import LoRAMapping
    from vllm.lora.model_manager import LoRAModelManager

_LOOP_ROWS = 32
"""Up to so many rows of one adapter the loop is faster than matrix products: those cost by their number, it by its
rows."""
_LANES = 4
"""The loop takes so many ranks at once."""


@dataclass(frozen=True)
class _Layer:
    """The adapters of one layer. down: (slots, slices, rank, in), up: (slots, rank, out of all slices)."""

    down: np.ndarray
    up: np.ndarray
    ends: tuple[int, ...]
    in_use: frozenset[int]

    @staticmethod
    def pack(a_stacked: tuple[Tensor, ...], b_stacked: tuple[Tensor, ...]) -> "_Layer":
        """Lay vLLM's stacked weights out for the loop: one slice behind the other, ranks padded."""
        down = torch.cat([a.float() for a in a_stacked], 1)
        up = torch.cat([b[:, 0].float() for b in b_stacked], 1).transpose(1, 2)
        pad = -down.shape[2] % _LANES
        down = torch.nn.functional.pad(down, (0, 0, 0, pad))
        up = torch.nn.functional.pad(up, (0, 0, 0, pad)).contiguous()
        ends = np.cumsum([b.shape[2] for b in b_stacked]).tolist()
        used = up.flatten(1).any(1).nonzero().flatten().tolist()
        return _Layer(down.numpy(), up.numpy(), tuple(ends), frozenset(used))


@dataclass(frozen=True)
class _Rows:
    """Rows of a step that wear an adapter: `few` of a slot, sorted by it, or `many`, which mostly lie together."""

    worn: frozenset[int]
    few: np.ndarray
    few_slots: np.ndarray
    many: tuple[tuple[int, slice | Tensor], ...]

    @staticmethod
    def of(slot_of_row: np.ndarray) -> "_Rows":
        """Sort the rows by the slot that each wears; below 0 is none."""
        rows = np.flatnonzero(slot_of_row >= 0)
        rows = rows[np.argsort(slot_of_row[rows], kind="stable")]
        slots, starts, counts = np.unique(slot_of_row[rows], return_index=True, return_counts=True)
        few = rows[np.repeat(counts, counts) <= _LOOP_ROWS]
        many = [
            (int(slot), _together(rows[start : start + count]))
            for slot, start, count in zip(slots, starts, counts, strict=True)
            if count > _LOOP_ROWS
        ]
        return _Rows(frozenset(slots.tolist()), few, slot_of_row[few], tuple(many))


def _together(rows: np.ndarray) -> slice | Tensor:
    first, last = int(rows[0]), int(rows[-1])
    return slice(first, last + 1) if last - first + 1 == len(rows) else torch.from_numpy(rows)


class CpuLora(PunicaWrapperCPU):
    """vLLM's wrapper with y += (x A^T) B^T for each row's own A and B; float32 inside, whatever the model's type."""

    def __init__(self, inner: PunicaWrapperCPU) -> None:
        """Take the place of `inner`, before its first use."""
        super().__init__(len(inner._token_lora_indices), len(inner._seq_lengths), inner.device)
        self._layout: list[int | None] = []
        self._layers: dict[int, _Layer] = {}
        self._tokens = _Rows.of(np.empty(0, dtype=np.int64))
        self._samples = self._tokens

    def update_metadata(
        self,
        mapping: "LoRAMapping",
        lora_index_to_id: list[int | None],
        max_loras: int,
        vocab_size: int,
        **_: object,
    ) -> None:
        """Take in which adapters the rows wear; vLLM calls it before a step whose rows or slots have changed."""
        self._update_base_metadata(mapping, lora_index_to_id, max_loras, vocab_size)
        if self._layout != lora_index_to_id:
            self._layout = list(lora_index_to_id)
            self._layers.clear()
        self._tokens = _Rows.of(self.token_lora_indices.numpy())
        self._samples = _Rows.of(self.sampler_indices.numpy())

    def narrow(self, tokens: Tensor | None) -> None:
        """Expect only these of the step's tokens from now on; None: all of them again."""
        slots = self.token_lora_indices.numpy()
        self._tokens = _Rows.of(slots if tokens is None else slots[tokens.numpy()])

    def add_lora_linear(
        self,
        y: Tensor,
        x: Tensor,
        lora_a_stacked: tuple[Tensor, ...],
        lora_b_stacked: tuple[Tensor, ...],
        scale: float,
        output_slices: tuple[int, ...],
        **_: object,
    ) -> None:
        """Add the adapters of a linear layer in place: y (rows, out of all slices), x (rows, in)."""
        self._add(y, x, lora_a_stacked, lora_b_stacked, self._tokens)

    def add_lora_logits(
        self, y: Tensor, x: Tensor, lora_a_stacked: Tensor, lora_b_stacked: Tensor, scale: float, **_: object
    ) -> None:
        """Add the adapters of the vocabulary's layer in place; its rows are the step's samples."""
        self._add(y.view(-1, y.shape[-1]), x, (lora_a_stacked,), (lora_b_stacked,), self._samples)

    def add_lora_embedding(
        self, y: Tensor, x: Tensor, lora_b_stacked: Tensor, *_: object, **__: object
    ) -> None:
        """Add the adapters of the embedding in place; its x (rows, rank) is what A says of a token."""
        slots, _one, _out, rank = lora_b_stacked.shape
        identity = torch.eye(rank).expand(slots, 1, rank, rank)
        self._add(y, x, (identity,), (lora_b_stacked,), self._tokens)

    def _add(
        self, y: Tensor, x: Tensor, a_stacked: tuple[Tensor, ...], b_stacked: tuple[Tensor, ...], rows: _Rows
    ) -> None:
        if not rows.worn:
            return
        key = id(b_stacked[0])
        layer = self._layers.get(key)
        if layer is None:
            layer = self._layers[key] = _Layer.pack(a_stacked, b_stacked)
        if layer.in_use.isdisjoint(rows.worn):
            return
        x = x.float().contiguous()
        total = y if y.dtype == torch.float32 and y.is_contiguous() else torch.zeros(y.shape)
        if rows.few.size:
            _add_by_row(x.numpy(), total.numpy(), layer.down, layer.up, layer.ends, rows.few, rows.few_slots)
        for slot, own in rows.many:
            _add_by_slot(x, total, layer, slot, own)
        if total is not y:
            y += total


def _add_by_slot(x: Tensor, y: Tensor, layer: _Layer, slot: int, own: slice | Tensor) -> None:
    down, all_up = torch.from_numpy(layer.down[slot]), torch.from_numpy(layer.up[slot])
    hidden = (x[own] @ down.flatten(0, 1).T).chunk(len(layer.ends), 1)
    start = 0
    for part, end in zip(hidden, layer.ends, strict=True):
        up = all_up[:, start:end]
        if isinstance(own, slice):
            y[own, start:end].addmm_(part, up)
        else:
            y[own, start:end] += part @ up
        start = end


@numba.njit(fastmath=True, cache=True)
def _add_by_row(x, y, down, up, ends, rows, slots):  # type: ignore[no-untyped-def]
    slices, rank = down.shape[1], down.shape[2]
    inner = np.empty(rank, dtype=np.float32)
    for number in range(rows.size):
        inputs, slot = x[rows[number]], slots[number]
        start = 0
        for part in range(slices):
            for k in range(rank):
                weights = down[slot, part, k]
                total = np.float32(0)
                for i in range(inputs.size):
                    total += weights[i] * inputs[i]
                inner[k] = total
            outputs = y[rows[number], start : ends[part]]
            for k in range(0, rank, 4):
                up0 = up[slot, k, start : ends[part]]
                up1 = up[slot, k + 1, start : ends[part]]
                up2 = up[slot, k + 2, start : ends[part]]
                up3 = up[slot, k + 3, start : ends[part]]
                for o in range(outputs.size):
                    outputs[o] += (
                        inner[k] * up0[o]
                        + inner[k + 1] * up1[o]
                        + inner[k + 2] * up2[o]
                        + inner[k + 3] * up3[o]
                    )
            start = ends[part]


def use_cpu_lora(adapter_manager: "LoRAModelManager") -> None:
    """Put `CpuLora` where vLLM's `LoRAModelManager` and its layers hold their wrapper; again changes nothing."""
    wrappers = adapter_manager.punica_wrapper_mapping
    replaced = {inner: CpuLora(inner) for inner in wrappers.values() if type(inner) is PunicaWrapperCPU}
    for prefix, inner in wrappers.items():
        wrappers[prefix] = replaced.get(inner, inner)
    for layer in adapter_manager.modules.values():
        layer.set_mapping(replaced.get(layer.punica_wrapper, layer.punica_wrapper))
