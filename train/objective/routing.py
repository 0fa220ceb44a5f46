"""What one responsibility is about: an example, a group of examples, or a token; and what each of them counts.

In: a `TrainConfig`, the examples of a step and their log-likelihoods. Out: the objective, and its gradient in the
log-likelihoods. Knows nothing of models.

Items are the N columns of a log-likelihood table (K, N): examples, or all their tokens where tokens are routed. Units
are what is routed, U <= N.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from softspec.maths.renyi import renyi_loss, responsibilities
from softspec.train.config import TrainConfig


@dataclass(frozen=True)
class Routing:
    """Item n belongs to unit `unit_of[n]` and counts `item_weights[n]` times in it; unit u counts `unit_weights[u]`.

    `renyi_alpha` is one order for all, or (U,).
    """

    renyi_alpha: float | Tensor
    floor: float
    unit_of: Tensor
    item_weights: Tensor
    unit_weights: Tensor

    def units(self, loglik: Tensor) -> Tensor:
        """Log-likelihoods of units, (K, U), from those of items, (K, N)."""
        sums = loglik.new_zeros(len(loglik), len(self.unit_weights))
        return sums.index_add(1, self.unit_of, self.item_weights * loglik)

    def loss(self, loglik: Tensor, log_weights: Tensor) -> Tensor:
        """The objective summed over units, scalar, nats, from the items' (K, N)."""
        return (
            self.unit_weights * renyi_loss(self.units(loglik), log_weights, self.renyi_alpha, self.floor)
        ).sum()

    def responsibilities(self, loglik: Tensor, log_weights: Tensor) -> Tensor:
        """(K, U), from the items' (K, N)."""
        return responsibilities(self.units(loglik), log_weights, self.renyi_alpha, self.floor)

    def of_items(self, shares: Tensor) -> Tensor:
        """Each item's responsibilities, (K, N), from those of units, (K, U)."""
        return shares[:, self.unit_of]

    def pull(self, shares: Tensor) -> Tensor:
        """Minus the gradient of `loss` in the items' log-likelihoods, (K, N), from responsibilities (K, U)."""
        return self.of_items(self.unit_weights * shares) * self.item_weights


def routing_of(
    config: TrainConfig, examples: Sequence[Any], renyi_alpha: float, mean_length: float, device: torch.device
) -> Routing:
    """Of these examples (or preferences), all of one step or of a part that is routed by itself.

    Args:
        renyi_alpha: the order of this step.
        mean_length: completion tokens of an example, the mean over the data.
    """
    weights = torch.tensor([example.weight for example in examples], dtype=torch.float64, device=device)
    each = torch.arange(len(examples), device=device)
    if config.granularity == "token":
        lengths = torch.tensor([len(example.completion_ids) for example in examples], device=device)
        per_token = weights.repeat_interleave(lengths)
        each = torch.arange(len(per_token), device=device)
        return Routing(renyi_alpha, config.responsibility_floor, each, torch.ones_like(per_token), per_token)
    unit_of, item_weights, unit_weights = each, torch.ones_like(weights), weights
    if config.granularity == "group":
        names: dict[str, int] = {}
        numbers = [names.setdefault(example.group, len(names)) for example in examples]
        unit_of, item_weights = torch.tensor(numbers, device=device), weights
        unit_weights = weights.new_ones(len(names))
    order: float | Tensor = renyi_alpha
    if config.routes_by_length:
        tokens = torch.tensor([len(example.completion_ids) for example in examples], device=device).double()
        lengths = torch.zeros_like(unit_weights).index_add(0, unit_of, tokens)
        order = _order_by_length(config, lengths, renyi_alpha, mean_length)
        unit_weights = unit_weights / _length_divisor(config, lengths, mean_length)
    return Routing(order, config.responsibility_floor, unit_of, item_weights, unit_weights)


def _order_by_length(
    config: TrainConfig, lengths: Tensor, renyi_alpha: float, mean_length: float
) -> float | Tensor:
    """The orders of units with these many tokens, (U,), at most 1: longer ones are routed more softly."""
    if config.length_exponent == 0 or renyi_alpha == 0:
        return renyi_alpha
    reference = config.reference_length or mean_length
    return (renyi_alpha * (reference / lengths) ** config.length_exponent).clamp_max(1)


def _length_divisor(config: TrainConfig, lengths: Tensor, mean_length: float) -> float | Tensor:
    divisors: dict[str, float | Tensor] = {"sum": 1.0, "own_length": lengths, "mean_length": mean_length}
    return divisors[config.length_weighting]
