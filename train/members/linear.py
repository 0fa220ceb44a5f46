"""A frozen linear layer with K low-rank updates, whose backward pass computes only the pairs that pull at something.

In: an `nn.Linear`, and which pairs run. Out: the layer's outputs, each pair's with the update of its member, and their
gradients. Knows no model and no objective.

Pairs never mix, so one whose gradient is zero at the top of the model has zero gradients all the way down: a member
that an example does not go to costs a forward pass and little more.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear

from softspec.train.members.pairs import Pairs


@dataclass(frozen=True)
class Dropout:
    """LoRA dropout: which inputs of an A every pair goes without, drawn once for all its tokens.

    An input that all tokens lack is a column of A that is not there, so a pair runs under one draw of weights (Gal &
    Ghahramani 2016, arXiv:1512.05287); PEFT draws for every token anew.
    """

    rate: float
    generator: torch.Generator

    def mask(self, num_pairs: int, num_inputs: int) -> Tensor:
        """What inputs (R, T, in) are multiplied with, (R, 1, in): 0, or 1 / (1 - rate)."""
        kept = torch.rand(num_pairs, 1, num_inputs, generator=self.generator) >= self.rate
        return kept / (1 - self.rate)


@dataclass
class Run:
    """A forward pass of these pairs; `pulling` are those with a gradient, None while that is open or if all have.

    `masks` are those that dropout drew: a pass that runs a layer again, to save memory, needs the same.
    """

    pairs: Pairs
    pulling: Tensor | None = None
    dropout: Dropout | None = None
    masks: dict["MemberLinear", Tensor] = field(default_factory=dict)

    def watch(self, top: Tensor) -> None:
        """Note the pairs that pull as soon as a backward pass reaches `top` (R, ...), before any layer below."""
        if top.requires_grad:
            top.register_hook(self._note)

    def _note(self, gradient: Tensor) -> None:
        pulling = gradient.flatten(1).any(1).nonzero()[:, 0]
        self.pulling = pulling if 0 < len(pulling) < len(gradient) else None


@dataclass
class Selection:
    """The running forward pass; None switches adapters off."""

    run: Run | None = None

    @contextmanager
    def of(self, run: Run) -> Iterator[None]:
        """Make `run` the running forward pass for as long as the context is open."""
        before, self.run = self.run, run
        try:
            yield
        finally:
            self.run = before


class MemberLinear(nn.Module):
    """A frozen linear layer and K low-rank updates; the input of pair i goes through that of its member."""

    def __init__(
        self, base: nn.Linear, num_members: int, rank: int, scaling: float, selection: Selection
    ) -> None:
        super().__init__()
        self.base = base
        self.scaling = scaling
        device = base.weight.device
        self.lora_a = nn.Parameter(torch.zeros(num_members, rank, base.in_features, device=device))
        self.lora_b = nn.Parameter(torch.zeros(num_members, base.out_features, rank, device=device))
        self._selection = selection

    def forward(self, inputs: Tensor) -> Tensor:
        """Outputs (R, ..., out) of inputs (R, ..., in); the base's alone while no pairs are selected."""
        run = self._selection.run
        if run is None:
            return self.base(inputs)
        # All in one precision, that of the base or of mixed precision; the adapters themselves stay float32.
        device = inputs.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else inputs.dtype
        if run.dropout:
            return self._dropped(inputs.to(dtype), run, run.dropout)
        tensors = (inputs, self.lora_a, self.lora_b, self.base.weight, self.base.bias)
        return _AdaptedLinear.apply(
            *(tensor if tensor is None else tensor.to(dtype) for tensor in tensors), self.scaling, run
        )

    def _dropped(self, inputs: Tensor, run: Run, dropout: Dropout) -> Tensor:
        """The same with some inputs of A left out; by autograd, as one member is not what has to be fast."""
        if self not in run.masks:
            run.masks[self] = dropout.mask(len(inputs), inputs.shape[-1]).to(inputs)
        down, up = (run.pairs.of_members(each).to(inputs) for each in (self.lora_a, self.lora_b))
        update = _parts(inputs * run.masks[self], down) @ down.mT @ up.mT
        return self.base(inputs) + self.scaling * update.view(*inputs.shape[:-1], -1)


class _AdaptedLinear(torch.autograd.Function):
    """The function x W^T + bias + scaling (x A_k^T) B_k^T in one node, without gradients of W and the bias."""

    @staticmethod
    def forward(
        ctx: Any,
        inputs: Tensor,
        lora_a: Tensor,
        lora_b: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        scaling: float,
        run: Run,
    ) -> Tensor:
        down, up = run.pairs.of_members(lora_a), run.pairs.of_members(lora_b)
        outputs = linear(inputs, weight, bias)
        low = (_parts(inputs, down) @ down.mT).mul_(scaling)
        _own_parts(outputs, up).baddbmm_(low, up.mT)
        ctx.save_for_backward(inputs, low.view(*inputs.shape[:-1], -1), lora_a, lora_b, weight)
        ctx.scaling, ctx.run = scaling, run
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        inputs, low, lora_a, lora_b, weight = ctx.saved_tensors
        pairs, pulling, shape = ctx.run.pairs, ctx.run.pulling, inputs.shape
        if pulling is not None:
            pairs = pairs.only(pulling)
            gradient, inputs, low = (each.index_select(0, pulling) for each in (gradient, inputs, low))
        down, up = pairs.of_members(lora_a), pairs.of_members(lora_b)
        pull = _parts(gradient, up)
        low_pull = (pull @ up).mul_(ctx.scaling)
        grad_a = pairs.sum_by_member(low_pull.mT @ _parts(inputs, down), len(lora_a))
        grad_b = pairs.sum_by_member(pull.mT @ _parts(low, down), len(lora_b))
        grad_inputs = None
        if ctx.needs_input_grad[0]:
            grad_inputs = gradient @ weight
            _own_parts(grad_inputs, down).baddbmm_(low_pull, down)
            if pulling is not None:
                grad_inputs = grad_inputs.new_zeros(shape).index_copy_(0, pulling, grad_inputs)
        return grad_inputs, grad_a, grad_b, None, None, None, None


def _parts(states: Tensor, adapters: Tensor) -> Tensor:
    """States (R, ..., size) as (M, N, size): as many of them for each of M adapters."""
    return states.reshape(len(adapters), -1, states.shape[-1])


def _own_parts(states: Tensor, adapters: Tensor) -> Tensor:
    """The same, to be written to: never a copy, in which an adapter's part would be lost without a word."""
    return states.view(len(adapters), -1, states.shape[-1])
