"""Three ways to train K adapters with a stock PEFT model.

In: a base, a cell and settings. Out: ways that take optimizer steps; two of them have gradients to compare.
Of this project's trainer it knows the loss alone.
"""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from peft import LoraConfig, get_peft_model, set_peft_model_state_dict
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from softspec.app.bench.core.layers import adapted_layers
from softspec.app.bench.training.material import adapter_states, random_examples
from softspec.app.bench.training.settings import BenchSettings, Cell
from softspec.app.bench.training.ways import CHECKED_EXAMPLES, LEARNING_RATE, MAX_GRAD_NORM, SteppingWay
from softspec.maths.mixture import uniform_log_weights
from softspec.maths.renyi import renyi_loss
from softspec.train.data.units import Example, in_batches
from softspec.train.members.base import load_base


class PeftWay(SteppingWay):
    """A stock PEFT model with so many adapters, and one AdamW for all of them."""

    def __init__(self, base: str, cell: Cell, settings: BenchSettings, adapters: int) -> None:
        states = adapter_states(base, cell, settings)[:adapters]
        self.names = [f"member-{number}" for number in range(adapters)]
        self.model = peft_model(load_base(base), self.names, states, settings)
        self.model.train()
        self.model.set_requires_grad(self.names)
        self.weights = {
            name: [weight for key, weight in self.model.named_parameters() if f".{name}." in key]
            for name in self.names
        }
        weights = [weight for own in self.weights.values() for weight in own]
        self.optimizer = torch.optim.AdamW(weights, lr=LEARNING_RATE, weight_decay=0.0, fused=True)
        self.members = cell.members
        self.renyi_alpha = settings.renyi_alpha
        self.micro_batch_size = settings.batch
        self.examples = random_examples(base, cell, settings, settings.examples_per_step)

    def optimizer_step(self) -> None:
        self.optimizer.zero_grad()
        self.add_gradients(self.examples, self.micro_batch_size)
        for weights in self.weights.values():
            torch.nn.utils.clip_grad_norm_(weights, MAX_GRAD_NORM)
        self.optimizer.step()

    @abstractmethod
    def add_gradients(self, examples: Sequence[Example], micro_batch_size: int) -> None:
        """Add the gradients of the mean loss over examples, micro-batch by micro-batch."""

    def loglik(self, examples: Sequence[Example], copies: int = 1, **peft: Any) -> Tensor:
        """log p(completion | prompt) under the active adapters, (copies * B,), nats, float64.

        The examples of a cell are equally long: there is no padding and no mask, and logits only of the completion.
        """
        device = self.model.device
        ids = torch.tensor(
            [example.prompt_ids + example.completion_ids for example in examples], device=device
        )
        ids = ids.repeat(copies, 1)
        count = len(examples[0].completion_ids)
        logits = self.model(input_ids=ids[:, :-1], logits_to_keep=count, use_cache=False, **peft).logits
        targets = ids[:, -count:]
        losses = cross_entropy(logits.float().flatten(0, 1), targets.flatten(), reduction="none")
        return -losses.view(targets.shape).double().sum(1)


class JointPeftWay(PeftWay):
    """A way that trains all K adapters under the one loss that softspec has."""

    def __init__(self, base: str, cell: Cell, settings: BenchSettings) -> None:
        super().__init__(base, cell, settings, cell.members)
        self.log_weights = uniform_log_weights(cell.members).to(self.model.device)

    @abstractmethod
    def table(self, examples: Sequence[Example]) -> Tensor:
        """Log-likelihoods of the examples under every adapter, (K, B), nats, differentiable."""

    def add_gradients(self, examples: Sequence[Example], micro_batch_size: int) -> None:
        for batch in in_batches(examples, micro_batch_size):
            losses = renyi_loss(self.table(batch), self.log_weights, self.renyi_alpha)
            (self.members * losses.sum() / len(examples)).backward()

    def gradients(self) -> dict[str, Tensor]:
        """The gradients of the first `CHECKED_EXAMPLES`, (K, ...) by PEFT's names without the adapter's, on the CPU."""
        self.optimizer.zero_grad()
        self.add_gradients(self.examples[:CHECKED_EXAMPLES], 1)
        found: dict[str, list[Tensor]] = {}
        for adapter in self.names:
            for name, weight in self.model.named_parameters():
                if f".{adapter}." in name:
                    assert weight.grad is not None, name
                    found.setdefault(name.replace(f".{adapter}.", "."), []).append(weight.grad.cpu())
        return {name: torch.stack(gradients) for name, gradients in found.items()}


class PeftSwitching(JointPeftWay):
    """`peft-switching`: the graphs of K forward passes are kept for one backward pass."""

    def table(self, examples: Sequence[Example]) -> Tensor:
        table = []
        for name in self.names:
            self.model.set_adapter(name)
            table.append(self.loglik(examples))
        # set_adapter freezes the other adapters: only the last one would get gradients, silently.
        self.model.set_requires_grad(self.names)
        return torch.stack(table)


class PeftMixed(JointPeftWay):
    """`peft-mixed`: K x B pairs of adapter and example in one pass."""

    def __init__(self, base: str, cell: Cell, settings: BenchSettings) -> None:
        super().__init__(base, cell, settings)
        # PEFT refuses adapter_names in training mode; without dropout that is the same.
        self.model.eval()

    def table(self, examples: Sequence[Example]) -> Tensor:
        names = [name for name in self.names for _ in examples]
        return self.loglik(examples, copies=self.members, adapter_names=names).view(self.members, -1)


class PeftSeparate(PeftWay):
    """`peft-separate`: K runs of the same cost, one after another; in memory there is one."""

    def __init__(self, base: str, cell: Cell, settings: BenchSettings) -> None:
        super().__init__(base, cell, settings, adapters=1)

    def optimizer_step(self) -> None:
        for _ in range(self.members):
            super().optimizer_step()

    def add_gradients(self, examples: Sequence[Example], micro_batch_size: int) -> None:
        for batch in in_batches(examples, micro_batch_size):
            tokens = len(examples) * len(batch[0].completion_ids)
            (-self.loglik(batch).sum() / tokens).backward()


def peft_model(
    model: PreTrainedModel, names: Sequence[str], states: Sequence[dict[str, Tensor]], settings: BenchSettings
) -> Any:
    """A PEFT model with these adapters, float32 on whatever base."""
    lora = LoraConfig(
        r=settings.rank,
        lora_alpha=2 * settings.rank,
        target_modules=sorted({name.rsplit(".", 3)[1] for name in states[0]}),
        layers_to_transform=list(adapted_layers(model, settings.layers)),
        task_type="CAUSAL_LM",
    )
    peft = get_peft_model(model, lora, adapter_name=names[0])
    for name in names[1:]:
        peft.add_adapter(name, lora)
    for name, state in zip(names, states, strict=True):
        found = set_peft_model_state_dict(peft, state, adapter_name=name)
        assert not found.unexpected_keys, found.unexpected_keys
    return peft
