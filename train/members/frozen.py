"""What the frozen base makes of an example before any adapter acts: the same in every step and run, so computed once.

In: token ids. Out: the keys and values that the adapted layers have of a trunk, and the states that enter the first of
them for a tail. Knows nothing of members, losses or batches.

Each trunk and each tail runs by itself, so its numbers do not depend on what it happens to run with: a run that finds
them on disk goes on like one that does not.
"""

import copy
import hashlib
import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import Cache, DynamicCache, PreTrainedModel

from softspec.train.members.kept import Kept, Tensors
from softspec.train.members.spec import decoder_layers

Ids = tuple[int, ...]
STATES = "states"


@dataclass(frozen=True)
class Frozen:
    """The base, whose layers from `first` on have adapters, and what is kept of it.

    `base` is the fingerprint of its files.
    """

    model: PreTrainedModel
    first: int
    kept: Kept
    base: str

    @property
    def is_separable(self) -> bool:
        """Whether adapted layers need nothing of those below but their states: keys and values may be shared, too."""
        return not getattr(self.model.get_decoder().config, "num_kv_shared_layers", 0)

    def of(self, trunk: Ids, tails: Collection[Ids]) -> tuple[Tensors, dict[Ids, Tensor]]:
        """What is frozen of examples that begin alike: from disk, or computed and put there.

        Returns:
            The trunk's keys and values by name, each (1, heads, A, size); and for each tail the states that enter the
            first adapted layer, (S, hidden). None of a trunk without tokens, or of tails without layers below.
        """
        known = self.kept.read(self.key(trunk)) if trunk else {}
        found = {tail: self.kept.read(self.key(trunk, tail)) for tail in set(tails)} if self.first else {}
        missing = [tail for tail, states in found.items() if states is None]
        if known is None or missing:
            computed, states = self.compute(trunk, missing, needs_trunk=known is None)
            if known is None:
                self.kept.write(self.key(trunk), computed)
                known = computed
            for tail in missing:
                found[tail] = {STATES: states[tail]}
                self.kept.write(self.key(trunk, tail), {STATES: states[tail]})
        return known, {tail: each[STATES] for tail, each in found.items() if each}

    @torch.no_grad()
    def compute(
        self, trunk: Ids, tails: Collection[Ids], needs_trunk: bool = True
    ) -> tuple[Tensors, dict[Ids, Tensor]]:
        """The same, computed; of the trunk nothing where it is not needed."""
        layers, cache, states = decoder_layers(self.model), None, {}
        if trunk:
            with ending_before(layers, len(layers) if needs_trunk else self.first):
                cache = self._run(trunk, 0, None, remembers=True)
        for tail in tails:
            with ending_before(layers, self.first) as entering:
                self._run(tail, len(trunk), copy_to_extend(cache), remembers=cache is not None)
            states[tail] = entering[0][0]
        parts: dict[str, Tensor] = {}
        if cache is not None and needs_trunk:
            for number in range(self.first, len(cache.layers)):
                keys, values = part_names(number)
                parts |= {keys: cache.layers[number].keys, values: cache.layers[number].values}
        return parts, states

    def _run(self, ids: Ids, start: int, cache: Cache | None, remembers: bool) -> Cache | None:
        """Run the decoder on tokens whose first has the position `start`; returns its cache if it remembers."""
        tokens = torch.tensor([ids], device=self.model.device)
        positions = torch.arange(start, start + len(ids), device=tokens.device)[None]
        output = self.model.get_decoder()(
            input_ids=tokens, position_ids=positions, past_key_values=cache, use_cache=remembers
        )
        return output.past_key_values if remembers else None

    def cache(self, trunks: Sequence[Tensors], length: int) -> Cache:
        """The keys and values of P trunks as one cache, padded on the left to `length` tokens."""
        device, cache = self.model.device, DynamicCache(config=self.model.get_decoder().config)
        # Lower layers will not run, but some models ask them how long the cache is.
        nothing = torch.zeros(len(trunks), 1, length, 1, dtype=self.model.dtype, device=device)
        for number in range(len(cache.layers)):
            parts = [nothing, nothing]
            if number >= self.first:
                parts = [_stacked(trunks, name, length).to(device) for name in part_names(number)]
            cache.update(*parts, number)
        return cache

    def bytes_per_token(self, has_trunks: bool) -> tuple[int, int]:
        """What a token of a trunk and one of a tail take on disk."""
        parts, states = self.compute((0,) if has_trunks else (), [(0,)] if self.first else [])
        return sum(each.nbytes for each in parts.values()), sum(each.nbytes for each in states.values())

    def key(self, trunk: Ids, tail: Ids | None = None) -> str:
        """The name under which the trunk's keys and values are kept, or the states of a tail behind it."""
        return self.key_of(trunk, tail)

    def key_of(self, *what: Any) -> str:
        """The name under which something is kept that this base makes, here, of `what`."""
        device = self.model.device.type
        how = [
            *(self.base, torch.__version__, transformers.__version__, self.model.config._attn_implementation),
            *(device, str(self.model.dtype)),
            str(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else "",
            self.first,
        ]
        return hashlib.sha256(json.dumps([how, *what]).encode()).hexdigest()


@contextmanager
def entered(layers: nn.ModuleList, first: int, states: Tensor | None) -> Iterator[None]:
    """Let a model begin at its layer `first` with these states (B, S, hidden); without any, where it always does."""
    forwards: dict[int, Callable[..., Tensor]] = {}
    if states is not None:
        forwards = {**dict.fromkeys(range(first - 1), _through), first - 1: lambda *_, **__: states}
    with _replaced(layers, forwards):
        yield


def copy_to_extend(cache: Cache | None) -> Cache | None:
    """A cache that one pass may extend; the given one stays as it is."""
    if cache is None:
        return None
    extendable = copy.copy(cache)
    extendable.layers = [copy.copy(layer) for layer in cache.layers]
    return extendable


@contextmanager
def ending_before(layers: nn.ModuleList, end: int) -> Iterator[list[Tensor]]:
    """Leave out the layers from `end` on; the list gets the states that would have entered them."""
    entering: list[Tensor] = []

    def note(hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
        entering.append(hidden_states)
        return hidden_states

    forwards = dict.fromkeys(range(end, len(layers)), _through)
    with _replaced(layers, {**forwards, end: note} if end < len(layers) else {}):
        yield entering


def _through(hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
    return hidden_states


@contextmanager
def _replaced(layers: nn.ModuleList, forwards: Mapping[int, Callable[..., Tensor]]) -> Iterator[None]:
    """Let these layers do something else for as long as the context is open."""
    for number, forward in forwards.items():
        layers[number].forward = forward
    try:
        yield
    finally:
        for number in forwards:
            del layers[number].forward


def part_names(layer: int) -> tuple[str, str]:
    """The names of a layer's keys and of its values among kept tensors."""
    return f"keys.{layer}", f"values.{layer}"


def _stacked(trunks: Sequence[Tensors], name: str, length: int) -> Tensor:
    """One part of P trunks, (P, heads, length, size), padded on the left, where masks hide it; some may have none."""
    empty = next(trunk[name] for trunk in trunks if trunk)[:, :, :0]
    parts = [trunk.get(name, empty) for trunk in trunks]
    return torch.cat([pad(part, (0, 0, length - part.shape[2], 0)) for part in parts])
