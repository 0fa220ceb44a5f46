"""Gradient checkpointing: the backward pass runs each decoder layer again instead of keeping what is inside it.

In: a model's decoder layers. Out: their `forward`, replaced for the length of one forward pass. transformers' own
does not work with a cache, which shared prompts need.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint


@contextmanager
def recomputed(
    layers: nn.ModuleList, first: int, setting: Callable[[], AbstractContextManager[None]]
) -> Iterator[None]:
    """Checkpoint every layer from `first` on, for as long as the context is open.

    Args:
        setting: a context for every run of a layer: what it depends on beside its arguments.
    """
    for index in range(first, len(layers)):
        layers[index].forward = _checkpointed(layers[index].forward, index, setting)
    try:
        yield
    finally:
        for index in range(first, len(layers)):
            del layers[index].forward


def _checkpointed(
    forward: Callable[..., Any], index: int, setting: Callable[[], AbstractContextManager[None]]
) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        cache = kwargs.get("past_key_values")
        shared = None if cache is None else cache.layers[index]

        def once(*inputs: Any) -> Any:
            if cache is not None:
                cache.layers[index] = copy.copy(
                    shared
                )  # the layer adds its keys and values: every run to its own
            with setting():
                return forward(*inputs, **kwargs)

        outputs = checkpoint(once, *args, use_reentrant=False)
        if cache is not None:
            cache.layers[index] = shared  # or they would be kept
        return outputs

    return run
