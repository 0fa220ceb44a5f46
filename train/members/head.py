"""The output head in parts: logits of a few positions at a time, because those of all are most of a run's memory.

In: a decoder's states, (M, hidden). Out: log-probabilities of given tokens, or all of a few positions. Knows neither
members nor examples.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

AT_ONCE = 2**25
"""Logits that are in memory together: 128 MB in float32, and a few copies of it."""


@dataclass(frozen=True)
class Head:
    """What a causal language model does to its decoder's states: the output embeddings, and what goes with them.

    `output` is the class of what the decoder returns; `at_once` the most logits to compute together.
    """

    model: PreTrainedModel
    output: Callable[..., ModelOutput]
    at_once: int = AT_ONCE

    @property
    def positions_at_once(self) -> int:
        """Positions whose logits may be in memory together, at least one."""
        return max(1, self.at_once // self.model.get_output_embeddings().weight.shape[0])

    def logits(self, states: Tensor) -> Tensor:
        """The logits of these states, (M, V), float32 or wider, with all that the model itself does to them."""
        decoder = self.model.get_decoder()
        # A copy: of a view the hooks of a shared base would warn.
        decoder.forward = lambda *_, **__: self.output(last_hidden_state=torch.stack([states]))
        try:
            logits = self.model(inputs_embeds=states[None], use_cache=False).logits[0]
            return logits.to(torch.promote_types(logits.dtype, torch.float32))
        finally:
            del decoder.forward

    def target_logprobs(self, states: Tensor, targets: Tensor) -> Tensor:
        """Log-probabilities of one token at each state, (M,), nats, from (M, hidden) and (M,).

        More than fit at once are computed part by part, and once more in the backward pass: nothing of size V is kept.
        """
        size = self.positions_at_once
        if len(states) <= size:
            return self._target_logprobs(states, targets)
        parts = zip(states.split(size), targets.split(size), strict=True)
        if not states.requires_grad:
            return torch.cat([self._target_logprobs(*part) for part in parts])
        return torch.cat(
            [
                checkpoint(self._target_logprobs, *part, use_reentrant=False, preserve_rng_state=False)
                for part in parts
            ]
        )

    def _target_logprobs(self, states: Tensor, targets: Tensor) -> Tensor:
        return -cross_entropy(self.logits(states), targets, reduction="none")
