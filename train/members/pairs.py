"""Pairs of an example and a member: which ones a forward pass runs, and where a model's batch becomes them.

In: a model's decoder layers. Out: hooks for the length of one forward pass. Knows attention masks and caches;
knows nothing of adapters, losses or data.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

PER_EXAMPLE_ARGUMENTS = ("attention_mask", "position_embeddings", "position_ids")

Arguments = tuple[tuple[Any, ...], dict[str, Any]]
"""Positional and keyword arguments of a decoder layer."""


@dataclass(frozen=True)
class Pairs:
    """R pairs of one forward pass: pair i runs example `examples[i]` under member `members[i]`; both (R,), int64.

    `is_every_pair`: they are those of `all_pairs`, so a member's pairs are neighbours and as many as any other's.
    """

    examples: Tensor
    members: Tensor
    num_examples: int
    is_every_pair: bool = False

    @classmethod
    def all_pairs(cls, num_members: int, num_examples: int, device: torch.device) -> "Pairs":
        """Every member on every example, member by member: pair k * B + b."""
        return cls(
            examples=torch.arange(num_examples, device=device).repeat(num_members),
            members=torch.arange(num_members, device=device).repeat_interleave(num_examples),
            num_examples=num_examples,
            is_every_pair=True,
        )

    def only(self, chosen: Tensor) -> "Pairs":
        """The pairs with these numbers."""
        return Pairs(self.examples[chosen], self.members[chosen], self.num_examples)

    def of_members(self, stacked: Tensor) -> Tensor:
        """A stack of one part for each member, (K, ...), as M equal parts of the pairs need it; M is K or R."""
        return stacked if self.is_every_pair else stacked.index_select(0, self.members)

    def sum_by_member(self, parts: Tensor, num_members: int) -> Tensor:
        """The sum of each member's parts, (K, ...), from (M, ...)."""
        if self.is_every_pair:
            return parts
        # index_add: in a fixed order on the CPU.
        return parts.new_zeros(num_members, *parts.shape[1:]).index_add_(0, self.members, parts)


@contextmanager
def expanded_from(
    layers: nn.ModuleList, first: int, pairs: Pairs, caches_have_pairs: bool = False
) -> Iterator[None]:
    """Run the layers below `first` once for each example and the others once for each pair.

    Lower layers have no adapters, so their states are the same for all members. The model is called with B
    examples and returns R pairs. Cached keys and values of upper layers are expanded with the states they
    belong to, unless they have a row for each pair already.
    """
    expander = _Expander(pairs, caches_have_pairs)
    with ExitStack() as hooks:
        for index in range(first, len(layers)):
            hook = expander.hook(index, expands_states=index == first)
            hooks.enter_context(layers[index].register_forward_pre_hook(hook, with_kwargs=True))
        yield


class _Expander:
    """Copies tensors of examples for the pairs that need them, each tensor once for all layers."""

    def __init__(self, pairs: Pairs, caches_have_pairs: bool) -> None:
        self._pairs = pairs
        self._caches_have_pairs = caches_have_pairs
        self._seen: dict[int, tuple[Tensor, Tensor]] = {}

    def hook(
        self, layer_index: int, expands_states: bool
    ) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], Arguments]:
        def expand(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments:
            if expands_states:
                args, kwargs = self._with_states(args, kwargs)
            cache = kwargs.get("past_key_values")
            if cache is not None and not self._caches_have_pairs:
                cache.layers[layer_index].batch_select_indices(self._pairs.examples)
            return args, {
                name: self._per_pair(value) if name in PER_EXAMPLE_ARGUMENTS else value
                for name, value in kwargs.items()
            }

        return expand

    def _with_states(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments:
        if args:
            return (args[0].index_select(0, self._pairs.examples), *args[1:]), kwargs
        states = kwargs["hidden_states"].index_select(0, self._pairs.examples)
        return args, {**kwargs, "hidden_states": states}

    def _per_pair(self, value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(self._per_pair(part) for part in value)
        if not isinstance(value, Tensor) or value.shape[0] != self._pairs.num_examples:
            return value  # shared by all examples: broadcasts over the pairs as it is
        if id(value) not in self._seen:
            self._seen[id(value)] = (value, value.index_select(0, self._pairs.examples))
        return self._seen[id(value)][1]
