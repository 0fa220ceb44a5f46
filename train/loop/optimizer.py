"""AdamW for members: each has moments and a step count of its own, and moves only where it has a gradient.

In: the members' stacked weights, with gradients. Out: moved weights. Knows no objective and no schedule.

A member that gets no example has a gradient of exactly zero. One AdamW for the stack would take that for a gradient:
it would carry the member on along the moments of earlier steps, and shrink its weights, while nobody looks where to.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn


class MembersAdamW:
    """One AdamW over the parts that members have of stacked weights (K, ...); it passes over parts without gradient."""

    def __init__(self, weights: Sequence[nn.Parameter], learning_rate: float, weight_decay: float) -> None:
        self._weights = weights
        self._parts = [[weight.detach()[member] for member in range(len(weight))] for weight in weights]
        every = [part for parts in self._parts for part in parts]
        self._adamw = torch.optim.AdamW(every, lr=learning_rate, weight_decay=weight_decay, fused=True)

    def zero_grad(self) -> None:
        """Forget all gradients."""
        for weight in self._weights:
            weight.grad = None

    def step(self, learning_rate: float) -> None:
        """Move every member that has a gradient other than zero in any of its weights."""
        moving = self._moving()
        self._look_at_weights()
        for weight, parts in zip(self._weights, self._parts, strict=True):
            for member, part in enumerate(parts):
                part.grad = weight.grad[member] if moving[member] and weight.grad is not None else None
        for group in self._adamw.param_groups:
            group["lr"] = learning_rate
        torch.autograd.graph.increment_version(self._weights)  # the parts have a count of their own
        self._adamw.step()

    def moments(self, member: int) -> list[dict[str, Any]]:
        """What AdamW remembers of a member, weight after weight; empty where it had no gradient so far."""
        return [self._adamw.state[parts[member]] for parts in self._parts]

    def copy_moments(self, source: int, target: int) -> None:
        """Give a member the moments and the step count of another."""
        for parts in self._parts:
            kept = self._adamw.state[parts[source]]
            self._adamw.state[parts[target]] = {name: value.clone() for name, value in kept.items()}

    def state_dict(self) -> dict[str, Any]:
        """Moments and step counts of all members."""
        return self._adamw.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up where `state_dict` was called."""
        self._look_at_weights()
        self._adamw.load_state_dict(state)

    def _moving(self) -> list[bool]:
        gradients = [weight.grad for weight in self._weights if weight.grad is not None]
        # The largest entry, for the square of a tiny one is zero.
        largest = [torch.linalg.vector_norm(each.flatten(1), math.inf, 1) for each in gradients]
        return torch.stack(largest).amax(0).gt(0).tolist()

    def _look_at_weights(self) -> None:
        """Let the parts be those of the weights as they are: what changes a model's precision stores them anew."""
        for weight, parts in zip(self._weights, self._parts, strict=True):
            for member, part in enumerate(parts):
                part.data = weight.detach()[member]
