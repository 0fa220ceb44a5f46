"""Members: K LoRA adapters installed in one frozen model, stacked, so that one pass runs any of them.

In: a transformers causal language model. Out: `Members`, which runs any pairs of example and member in one pass,
clips and stores each member by itself. Knows nothing of losses, data or files.

PEFT is the file format, not the training path: its `set_adapter` freezes the other adapters, so a joint
backward would silently reach the last one only.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from softspec.train.members.frozen import Frozen
from softspec.train.members.linear import Dropout, MemberLinear, Run, Selection
from softspec.train.members.pairs import Pairs, expanded_from
from softspec.train.members.recompute import recomputed
from softspec.train.members.spec import LoraSpec, decoder_layers
from softspec.train.processes import Processes

T = TypeVar("T")


class Members:
    """K adapters in one frozen model, which are off except inside `running`.

    `frozen`, where it is set, keeps what the model makes of examples below the adapters. `sharing` are the processes
    that share the model's layers, where none has all of them. Passes without gradients have no dropout.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        spec: LoraSpec,
        num_members: int,
        seed: int = 0,
        b_init_std: float = 0.0,
        gradient_checkpointing: bool = False,
        dropout: float = 0.0,
    ) -> None:
        self.model = model.eval().requires_grad_(False)
        self.spec = spec
        self.num_members = num_members
        self.gradient_checkpointing = gradient_checkpointing
        self.dropout = Dropout(dropout, torch.Generator()) if dropout else None
        self.frozen: Frozen | None = None
        self.sharing: Processes | None = None
        self._selection = Selection()
        self.linears = {
            name: MemberLinear(linear, num_members, spec.rank, spec.lora_alpha / spec.rank, self._selection)
            for name, linear in spec.targets(model)
        }
        self._install(self.linears)
        for member in range(num_members):
            self._initialise(member, member_seed(seed, member), b_init_std)

    def parameters(self) -> list[nn.Parameter]:
        """Every adapter weight; the first dimension is the member."""
        return [weight for linear in self.linears.values() for weight in (linear.lora_a, linear.lora_b)]

    @contextmanager
    def running(self, pairs: Pairs | None, caches_have_pairs: bool = False) -> Iterator[None]:
        """Run the model on these pairs: give it B examples, it returns R pairs. None is the base model.

        A cache has a row for each example; with `caches_have_pairs`, from the first adapted layer on, for each pair, as
        it has after a pass over the pairs.
        """
        if pairs is None:
            yield
            return
        run = Run(pairs, dropout=self.dropout if torch.is_grad_enabled() else None)
        layers, first = decoder_layers(self.model), self.spec.layers[0]
        with ExitStack() as stack:
            stack.enter_context(self._selection.of(run))
            stack.enter_context(expanded_from(layers, first, pairs, caches_have_pairs))
            stack.enter_context(layers[-1].register_forward_hook(lambda _, args, states: run.watch(states)))
            if self.gradient_checkpointing and torch.is_grad_enabled():
                stack.enter_context(recomputed(layers, first, lambda: self._selection.of(run)))
            yield

    def rounds(self, batches: Sequence[T], spare: T) -> list[tuple[T, bool]]:
        """The batches, each true; behind them, false, so many `spare` ones that all who share the layers have as many.

        Whoever has fewer runs the layers for the others.
        """
        most = self.sharing.largest(len(batches)) if self.sharing else len(batches)
        return [(batch, True) for batch in batches] + [(spare, False)] * (most - len(batches))

    def anyone(self, has: bool) -> bool:
        """Whether one of those who share the layers has it; without sharing, whether this process does."""
        return bool(self.sharing.largest(has)) if self.sharing else has

    def clip_gradients(self, max_norm: float) -> Tensor:
        """Scale each member's gradient to at most `max_norm` (0: leave it) and return the norms before, (K,).

        One by one, because a global norm would let a member that learns much slow the others down.
        """
        gradients = [weight.grad for weight in self.parameters() if weight.grad is not None]
        parts = torch.stack([torch.linalg.vector_norm(each.flatten(1), dim=1) for each in gradients])
        norms = torch.linalg.vector_norm(parts, dim=0)
        if max_norm > 0:
            factors = (max_norm / (norms + 1e-6)).clamp_max(1)
            for gradient in gradients:
                gradient *= factors[:, None, None]
        return norms

    def squared_distance(self, centre: Sequence[Tensor]) -> Tensor:
        """Each member's squared distance from `centre`, in the shapes of `parameters()`; (K,), differentiable."""
        pairs = zip(self.parameters(), centre, strict=True)
        return torch.stack([(weight - mean).square().flatten(1).sum(1) for weight, mean in pairs]).sum(0)

    def moved(self) -> Tensor:
        """Whether any B weight of each member is not zero, (K,) bool."""
        return torch.stack(
            [linear.lora_b.detach().flatten(1).any(1) for linear in self.linears.values()]
        ).any(0)

    def adapter_state(self, member: int) -> dict[str, Tensor]:
        """One member's weights under PEFT's names, on the CPU."""
        return {key: weight[member].detach().cpu().contiguous() for key, weight in self.named_weights()}

    @torch.no_grad()
    def load_adapter(self, member: int, state: dict[str, Tensor]) -> None:
        """Take the weights of one member that `adapter_state` returned; KeyError when one is missing."""
        for key, weight in self.named_weights():
            weight[member] = state[key]

    @contextmanager
    def removed(self) -> Iterator[PreTrainedModel]:
        """The untouched base model, for as long as the context is open."""
        self.uninstall()
        try:
            yield self.model
        finally:
            self._install(self.linears)

    def uninstall(self) -> None:
        """Leave the base as it was, for other members."""
        self._install({name: linear.base for name, linear in self.linears.items()})

    def named_weights(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Every adapter weight under the name that PEFT gives to one member's part of it."""
        for name, linear in self.linears.items():
            yield f"base_model.model.{name}.lora_A.weight", linear.lora_a
            yield f"base_model.model.{name}.lora_B.weight", linear.lora_b

    def _install(self, modules: "dict[str, MemberLinear] | dict[str, nn.Linear]") -> None:
        for name, module in modules.items():
            parent, _, child = name.rpartition(".")
            setattr(self.model.get_submodule(parent), child, module)

    @torch.no_grad()
    def _initialise(self, member: int, seed: int, b_init_std: float) -> None:
        """Start a member as PEFT does: A Kaiming-uniform, B zero (or noise).

        A must differ between members, or they stay equal for ever.
        """
        generator = torch.Generator().manual_seed(seed)
        for linear in self.linears.values():
            drawn = torch.empty(linear.lora_a.shape[1:])
            nn.init.kaiming_uniform_(drawn, a=math.sqrt(5), generator=generator)
            linear.lora_a[member] = drawn
        for linear in self.linears.values():
            linear.lora_b[member] = b_init_std * torch.randn(linear.lora_b.shape[1:], generator=generator)


def member_seed(seed: int, member: int) -> int:
    """The seed of one member's A; no two (run, member) pairs of ordinary size share one."""
    return 1000 * seed + member
