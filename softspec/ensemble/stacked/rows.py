"""Prompts read by all members at once, and what follows them: the rows of a model with their caches.

In: prompts as ids. Out: the states behind them, under every member, and a cache that can go on. The leading blocks of a
prompt run once, without adapters; layers below the first adapted one run once for all members; prompts that several
answers follow are read once. Knows no likelihood and draws nothing.

Members come first: row k * B + b of a cache, from the first adapted layer on, is member k behind sequence b; below that
layer row b is sequence b.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import Cache
from transformers.utils import ModelOutput

from softspec.ensemble.stacked.batches import Limits
from softspec.ensemble.stacked.beneath import beneath
from softspec.ensemble.stacked.prompts import Ids, PaddedPrompts
from softspec.train.data.units import in_batches
from softspec.train.members.head import Head
from softspec.train.members.members import Members
from softspec.train.members.pairs import Pairs


@dataclass
class Rows:
    """B sequences under K members: `states` (K, B, hidden) at their last tokens, and what is needed to go on.

    `mask` (B, T) has the tokens so far; padding is on the left.
    """

    members: Members
    states: Tensor
    mask: Tensor
    cache: Cache
    output: Callable[..., ModelOutput]

    @property
    def head(self) -> Head:
        """What makes logits of states."""
        return Head(self.members.model, self.output)

    def selected(self, sequences: Tensor) -> "Rows":
        """These sequences (B',), in this order, each as often as it is named; those here can go on by themselves."""
        size, first = self.mask.shape[0], self.members.spec.layers[0]
        members = torch.arange(self.members.num_members, device=sequences.device)
        pairs = (members[:, None] * size + sequences).flatten()
        cache = _copied(self.cache)
        for number, layer in enumerate(cache.layers):
            layer.batch_select_indices(sequences if number < first else pairs)
        return Rows(self.members, self.states[:, sequences], self.mask[sequences], cache, self.output)

    @torch.no_grad()
    def extend(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Go on with tokens (B, T), padded on the right by `mask`; returns their states (K, B, T, hidden)."""
        before, self.mask = self.mask, torch.cat([self.mask, mask], 1)
        positions = before.sum(1, keepdim=True) + torch.arange(ids.shape[1], device=ids.device)
        states, _ = _run(self.members, ids, self.mask, positions, self.cache, True)
        states = states.unflatten(0, (self.members.num_members, -1))
        self.states = states[:, :, -1]
        return states


@torch.no_grad()
def read_prompts(members: Members, prompts: Sequence[Ids], block_size: int | None) -> Rows:
    """Read prompts of different lengths, none of them empty; the adapters begin behind the leading blocks."""
    padded = PaddedPrompts.of(prompts, block_size, members.model.device)
    if members.frozen is None:
        cache = padded.trunk_cache(members.model)
        states, output = _run(members, padded.tail_ids, padded.mask, padded.positions, cache, False)
    else:
        with beneath(members.frozen, padded) as cache:
            states, output = _run(members, padded.tail_ids, padded.mask, padded.positions, cache, False)
    last = states[:, -1].unflatten(0, (members.num_members, -1))
    return Rows(members, last, padded.mask, cache, output)


def followed(
    members: Members, limits: Limits, prompts: Sequence[Ids], followers: Sequence[tuple[int, int]]
) -> Iterator[tuple[list[int], Rows]]:
    """What follows prompts, in batches that fit: each prompt is read once, whatever the number of its followers.

    Args:
        followers: each with the number of its prompt, and how many tokens it has at most.
    Yields:
        the numbers of some of the followers, and the rows that they go on with.
    """
    of_prompt: list[list[int]] = [[] for _ in prompts]
    for number, (prompt, _) in enumerate(followers):
        of_prompt[prompt].append(number)
    more = [max((followers[number][1] for number in own), default=0) for own in of_prompt]
    for batch in limits.batches([len(prompt) for prompt in prompts], more):
        rows = read_prompts(members, [prompts[number] for number in batch], limits.block_size)
        own = [(place, number) for place, prompt in enumerate(batch) for number in of_prompt[prompt]]
        own.sort(key=lambda pair: followers[pair[1]][1])
        size = limits.at_once(rows.mask.shape[1] + max(more[prompt] for prompt in batch))
        for part in in_batches(own, size):
            places = torch.tensor([place for place, _ in part], device=rows.mask.device)
            yield [number for _, number in part], rows.selected(places)


def _run(
    members: Members, ids: Tensor, mask: Tensor, positions: Tensor, cache: Cache, caches_have_pairs: bool
) -> tuple[Tensor, Callable[..., ModelOutput]]:
    """States (K * B, T, hidden) of B sequences under all members; the cache grows by them."""
    pairs = Pairs.all_pairs(members.num_members, len(ids), ids.device)
    with members.running(pairs, caches_have_pairs):
        output = members.model.get_decoder()(
            input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True
        )
    return output.last_hidden_state, type(output)


def _copied(cache: Cache) -> Cache:
    """A cache that grows by itself; the tensors so far are shared."""
    copied = copy.copy(cache)
    copied.layers = [copy.copy(layer) for layer in cache.layers]
    return copied
