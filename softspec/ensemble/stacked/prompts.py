"""Prompts of different lengths as tensors: leading blocks, which the base reads by itself, and the rest.

In: ids. Out: padded tensors with their masks and positions. Knows no members.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import Cache, DynamicCache, PreTrainedModel

from softspec.artefact.activation import shared_tokens

Ids = Sequence[int]


@dataclass(frozen=True)
class PaddedPrompts:
    """B prompts, each a trunk of whole blocks and a tail, both padded on the left.

    Prompts that begin alike have one trunk, `trunk_of[b]` of P. Shapes: `trunk_ids` and `trunk_mask` (P, A), `tail_ids`
    and `positions` (B, S), `mask` (B, A + S).
    """

    trunk_ids: Tensor
    trunk_mask: Tensor
    trunk_of: Tensor
    tail_ids: Tensor
    mask: Tensor

    @classmethod
    def of(cls, prompts: Sequence[Ids], block_size: int | None, device: torch.device) -> "PaddedPrompts":
        """Pad prompts, none of which is empty."""
        trunks: dict[tuple[int, ...], int] = {}
        trunk_of, tails = [], []
        for prompt in prompts:
            shared = shared_tokens(block_size, len(prompt))
            trunk_of.append(trunks.setdefault(tuple(prompt[:shared]), len(trunks)))
            tails.append(prompt[shared:])
        trunk_ids, trunk_mask = padded(list(trunks), device, "left")
        tail_ids, tail_mask = padded(tails, device, "left")
        order = torch.tensor(trunk_of, device=device)
        return cls(trunk_ids, trunk_mask, order, tail_ids, torch.cat([trunk_mask[order], tail_mask], 1))

    @property
    def trunk_length(self) -> int:
        """How many tokens the trunks have, A; 0 where there are none."""
        return self.trunk_ids.shape[1]

    @property
    def positions(self) -> Tensor:
        """The positions of the tails' tokens, (B, S)."""
        return (self.mask.cumsum(1) - 1).clamp_min(0)[:, self.trunk_length :]

    def trunk_cache(self, model: PreTrainedModel) -> Cache:
        """The keys and values that the model has of each prompt's trunk."""
        cache: Cache = DynamicCache(config=model.config)
        if self.trunk_length:
            model.get_decoder()(
                input_ids=self.trunk_ids,
                attention_mask=self.trunk_mask,
                position_ids=(self.trunk_mask.cumsum(1) - 1).clamp_min(0),
                past_key_values=cache,
                use_cache=True,
            )
        cache.batch_select_indices(self.trunk_of)
        return cache


def padded(parts: Sequence[Ids], device: torch.device, side: str) -> tuple[Tensor, Tensor]:
    """Ids of different lengths as one tensor (B, longest), int64, and a mask that hides the padding."""
    ids = [torch.tensor(part, dtype=torch.long) for part in parts]
    masks = [torch.ones_like(each) for each in ids]
    return (
        pad_sequence(ids, batch_first=True, padding_side=side).to(device),
        pad_sequence(masks, batch_first=True, padding_side=side).to(device),
    )
