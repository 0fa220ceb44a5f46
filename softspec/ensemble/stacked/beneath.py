"""What the frozen base makes of a batch of prompts before any adapter acts, kept for other ensembles of this base.

In: padded prompts. Out: the cache behind them, and a model that begins at its first adapted layer. Knows no members.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedModel

from softspec.artefact.cache import cache_folder
from softspec.ensemble.stacked.prompts import PaddedPrompts
from softspec.train.members.frozen import STATES, Frozen, ending_before, entered, part_names
from softspec.train.members.kept import Kept, Tensors
from softspec.train.members.spec import decoder_layers

LIMIT = 4 * 10**9
"""Bytes on disk, those that training keeps included."""


def keeping(model: PreTrainedModel, first: int, base: str, num_tokens: int) -> Frozen | None:
    """What keeps all that is frozen of prompts of so many tokens together; None if that is nothing, or too much.

    Args:
        first: the first adapted layer. base: the fingerprint of the base.
    """
    frozen = Frozen(model, first, Kept(cache_folder("frozen")), base)
    if not (first and frozen.is_separable):
        return None
    adapted, states = frozen.bytes_per_token(has_trunks=True)
    layers = len(decoder_layers(model))
    needed = num_tokens * (adapted * layers // (layers - first) + states)
    return frozen if needed <= LIMIT // 2 else None


@contextmanager
def beneath(frozen: Frozen, prompts: PaddedPrompts) -> Iterator[Cache]:
    """A cache for one pass of the adapted layers over the tails, in which the layers below have passed already."""
    key = frozen.key_of(*(each.tolist() for each in vars(prompts).values()))
    parts = frozen.kept.read(key)
    if parts is None:
        parts = _computed(frozen, prompts)
        frozen.kept.make_room(sum(each.nbytes for each in parts.values()), LIMIT, {key})
        frozen.kept.write(key, parts)
    device, cache = frozen.model.device, DynamicCache(config=frozen.model.config)
    for number, (keys, values) in _layers(parts):
        if prompts.trunk_length:
            trunk = keys[:, :, : prompts.trunk_length], values[:, :, : prompts.trunk_length]
            cache.update(*(part.to(device) for part in trunk), number)
    with entered(decoder_layers(frozen.model), frozen.first, parts[STATES].to(device)):
        yield cache
    for number, (keys, values) in _layers(parts):
        if number < frozen.first:
            tail = keys[:, :, prompts.trunk_length :], values[:, :, prompts.trunk_length :]
            cache.update(*(part.to(device) for part in tail), number)


def _layers(parts: Tensors) -> Iterator[tuple[int, tuple[Tensor, Tensor]]]:
    """The layers that have keys and values."""
    for number in range((len(parts) - 1) // 2):
        keys, values = part_names(number)
        yield number, (parts[keys], parts[values])


@torch.no_grad()
def _computed(frozen: Frozen, prompts: PaddedPrompts) -> Tensors:
    """The keys and values of the trunks, below the adapted layers of the tails too, and the states that enter these."""
    layers, cache = decoder_layers(frozen.model), prompts.trunk_cache(frozen.model)
    with ending_before(layers, frozen.first) as entering:
        frozen.model.get_decoder()(
            input_ids=prompts.tail_ids,
            attention_mask=prompts.mask,
            position_ids=prompts.positions,
            past_key_values=cache,
            use_cache=True,
        )
    parts: dict[str, Tensor] = {STATES: entering[0]}
    for number, layer in enumerate(cache.layers):
        if layer.keys is not None:  # without trunks adapted layers have none
            parts |= dict(zip(part_names(number), (layer.keys, layer.values), strict=True))
    return parts
