"""Routing: the objective of some units, as a function of how likely members find them.

In: a `TrainConfig`, units and the log-likelihoods of their items. Out: the alpha-Renyi loss, responsibilities, and the
loss's gradient in the log-likelihoods. Knows nothing of models.

Items are the N columns of a log-likelihood table (K, N): units, or all their tokens where tokens are routed. A bundle
is what is routed as one: the units with one key where groups are routed, and every item by itself otherwise; G <= N.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from softspec.maths.renyi import (
    bounded_order,
    load,
    renyi_loss,
    responsibilities,
    routing_perplexity,
    weighted_mean,
)
from softspec.train.config import TrainConfig
from softspec.train.data.units import Unit


@dataclass(frozen=True)
class Table:
    """What all members make of B units, nats, float64: log-likelihoods of their items, (K, N), and margins.

    `margins`: (K, B) of preferences, (K, 0) of completions.
    """

    loglik: Tensor
    margins: Tensor


@dataclass(frozen=True)
class Routing:
    """The objective: item n belongs to bundle `bundle_of[n]` and counts `item_weights[n]` times in it.

    Bundle g counts `bundle_weights[g]` times, and its loss is divided by `length_divisor`, a number or (G,).
    `log_weights` (K,) are the mixture's; `renyi_alpha` is one order for all bundles, or (G,); `floor` as for
    `renyi_loss`. `unit_weights` (B,) are the weights of the units themselves, whatever is routed. `reach_nats` is how
    far a bundle's responsibilities may be from the weights, as for `bounded_order`.
    """

    log_weights: Tensor
    renyi_alpha: float | Tensor
    floor: float
    bundle_of: Tensor
    item_weights: Tensor
    bundle_weights: Tensor
    unit_weights: Tensor
    length_divisor: float | Tensor = 1.0
    reach_nats: float = math.inf

    @property
    def loss_weights(self) -> Tensor:
        """How much each bundle's loss counts, (G,)."""
        return self.bundle_weights / self.length_divisor

    def bundles(self, loglik: Tensor) -> Tensor:
        """Log-likelihoods of bundles, (K, G), from those of items, (K, N)."""
        sums = loglik.new_zeros(len(loglik), len(self.bundle_weights))
        return sums.index_add(1, self.bundle_of, self.item_weights * loglik)

    def orders(self, bundles: Tensor) -> float | Tensor:
        """The order of bundles with these log-likelihoods (K, G), one for all or (G,): none leads out of reach."""
        if math.isinf(self.reach_nats) or (
            not isinstance(self.renyi_alpha, Tensor) and self.renyi_alpha == 0
        ):
            return self.renyi_alpha
        return bounded_order(bundles, self.log_weights, self.renyi_alpha, self.reach_nats)

    def loss(self, loglik: Tensor) -> Tensor:
        """The alpha-Renyi loss summed over bundles, scalar, nats, from the items' log-likelihoods (K, N)."""
        bundles = self.bundles(loglik)
        losses = renyi_loss(bundles, self.log_weights, self.orders(bundles), self.floor)
        return (self.loss_weights * losses).sum()

    def mean_loss(self, loglik: Tensor) -> Tensor:
        """The same in nats per unit: a mean in which units count as they weigh."""
        return self.loss(loglik) / self.unit_weights.sum()

    def responsibilities(self, loglik: Tensor) -> Tensor:
        """Each member's share of each bundle, (K, G), from the items' log-likelihoods (K, N)."""
        bundles = self.bundles(loglik)
        return responsibilities(bundles, self.log_weights, self.orders(bundles), self.floor)

    def mean_order(self, loglik: Tensor) -> float:
        """The order that the items' log-likelihoods (K, N) came to; bundles count as in the loss."""
        orders = self.orders(self.bundles(loglik))
        return weighted_mean(orders, self.loss_weights).item() if isinstance(orders, Tensor) else orders

    def of_items(self, shares: Tensor) -> Tensor:
        """Each item's responsibilities, (K, N), from those of bundles, (K, G)."""
        return shares[:, self.bundle_of]

    def pull(self, shares: Tensor) -> Tensor:
        """Each item's responsibilities times all that it counts, (K, N), from those of bundles, (K, G).

        This is minus the gradient of `loss` in the items' log-likelihoods.
        """
        return self.of_items(self.loss_weights * shares) * self.item_weights

    def load(self, shares: Tensor) -> Tensor:
        """Each member's share of what the loss counts, (K,), from those of bundles, (K, G)."""
        return load(shares, self.loss_weights)

    def perplexity(self, shares: Tensor) -> Tensor:
        """How many members share a bundle, scalar; bundles count as in the loss."""
        return routing_perplexity(shares, self.loss_weights)

    def best_weights(self, shares: Tensor) -> Tensor:
        """The mixture weights (K,) with the lowest loss while responsibilities stay: the maximisation step of EM.

        It is the load; a bundle with an order of its own counts 1 / order times, as KL(r || w) does in its loss.
        """
        order = self.renyi_alpha if isinstance(self.renyi_alpha, Tensor) else 1.0
        return load(shares, self.loss_weights / order)


def routing_of(
    config: TrainConfig,
    units: Sequence[Unit],
    log_weights: Tensor,
    renyi_alpha: float,
    mean_length: float,
    reach_nats: float = math.inf,
) -> Routing:
    """The routing of these units: all of one step, or a part that is routed by itself.

    Args:
        log_weights: (K,), those of the mixture.
        renyi_alpha: the order of this step.
        mean_length: completion tokens of what is routed as one, a unit or the units of a group that are dealt
        together; the mean over the data.
        reach_nats: how far responsibilities may be from the weights in this step.
    """
    device, floor = log_weights.device, config.responsibility_floor
    unit_weights = torch.tensor([unit.weight for unit in units], dtype=torch.float64, device=device)
    weights = unit_weights
    if config.granularity == "token":
        weights = weights.repeat_interleave(_lengths(units, device))
    bundle_of = torch.arange(len(weights), device=device)
    item_weights, bundle_weights = torch.ones_like(weights), weights
    if config.granularity == "group":
        keys: dict[str | None, int] = {}
        numbers = [keys.setdefault(unit.bundle, len(keys)) for unit in units]
        bundle_of, item_weights = torch.tensor(numbers, device=device), weights
        bundle_weights = weights.new_ones(len(keys))
    order: float | Tensor = renyi_alpha
    divisor: float | Tensor = 1.0
    if config.routes_by_length:
        tokens = _lengths(units, device).double()
        lengths = torch.zeros_like(bundle_weights).index_add(0, bundle_of, tokens)
        order = _order_by_length(config, lengths, renyi_alpha, mean_length)
        divisor = _length_divisor(config, lengths, mean_length)
    return Routing(
        log_weights, order, floor, bundle_of, item_weights, bundle_weights, unit_weights, divisor, reach_nats
    )


def _lengths(units: Sequence[Unit], device: torch.device) -> Tensor:
    """The completion tokens of each unit, (B,)."""
    lengths = [sum(len(each.completion_ids) for each in unit.completions) for unit in units]
    return torch.tensor(lengths, device=device)


def _order_by_length(
    config: TrainConfig, lengths: Tensor, renyi_alpha: float, mean_length: float
) -> float | Tensor:
    """The orders of bundles with these many tokens, (G,), at most 1: longer ones are routed more softly."""
    if config.length_exponent == 0 or renyi_alpha == 0:
        return renyi_alpha
    reference = config.reference_length or mean_length
    return (renyi_alpha * (reference / lengths) ** config.length_exponent).clamp_max(1)


def _length_divisor(config: TrainConfig, lengths: Tensor, mean_length: float) -> float | Tensor:
    """What the loss of a bundle with so many tokens is divided by: a number, or (G,)."""
    divisors: dict[str, float | Tensor] = {"sum": 1.0, "own_length": lengths, "mean_length": mean_length}
    return divisors[config.length_weighting]
