"""Pruning: which of the trained members are kept, with which mixture weights.

In: log-likelihoods of held-out columns under all members. Out: for every number of members the best of them. Trains
nothing.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import combinations

from torch import Tensor

from softspec.maths.mixture import uniform_log_weights
from softspec.train.selection.units import Frame

EXHAUSTIVE = 8
"""Up to so many members every choice of them is looked at; of more they are added one by one."""
LEAST_LOAD = 0.1
"""A member with less than this part of a fair share, 1 / K, is dropped."""
MOST_ROUNDS = 500
CLOSE_NATS = 1e-5
"""How near the best weights are approached."""


@dataclass(frozen=True)
class Pruned:
    """Some of the members, with their mixture weights and the mixture's losses by cluster (J,), nats."""

    members: tuple[int, ...]
    log_weights: Tensor
    losses: Tensor


def pruning_curve(loglik: Tensor, frame: Frame, sizes: Iterable[int]) -> list[Pruned]:
    """The best members of each number, fewest first, by the held-out NLL of their mixture; (K, C) in.

    Weights are uniform unless refitted ones are better by more than one standard error; of members with next to no
    load it keeps fewer than asked for.
    """
    found: dict[tuple[int, ...], Pruned] = {}
    best: tuple[int, ...] = ()
    wanted = set(sizes)
    for size in range(1, max(wanted) + 1):
        choices = _choices(best, size, len(loglik))
        best = min(choices, key=lambda members: _refitted(loglik, frame, members)[1])
        if size in wanted:
            pruned = weighed(loglik, frame, best)
            found.setdefault(pruned.members, pruned)
    return sorted(found.values(), key=lambda pruned: len(pruned.members))


def weighed(loglik: Tensor, frame: Frame, members: tuple[int, ...]) -> Pruned:
    """These members without those that have next to no load, and the weights that the data can tell from equal ones."""
    weights, _ = _refitted(loglik, frame, members)
    kept = tuple(
        member
        for member, weight in zip(members, weights.tolist(), strict=True)
        if weight >= LEAST_LOAD / len(members)
    )
    if kept != members:
        return weighed(loglik, frame, kept)
    table, uniform = loglik[list(members)], uniform_log_weights(len(members))
    equal, refitted = frame.losses(table, uniform), frame.losses(table, weights.log())
    if frame.difference(equal, refitted).is_clear:
        return Pruned(members, weights.log(), refitted)
    return Pruned(members, uniform, equal)


def refit(loglik: Tensor, counts: Tensor) -> Tensor:
    """The mixture weights (K,) under which columns (K, C) that count so often (C,) are likeliest.

    The fixed point w = mean of the responsibilities at alpha 1, by expectation maximisation: the log-likelihood is
    concave in the weights, so it is the maximum. A weight at the fixed point is its member's load. No weights are
    better than those of a round by more than the largest log of what it multiplies a weight by, nats per column.
    """
    likelihood = (loglik - loglik.amax(0)).exp()
    shares = counts / counts.sum()
    weights = uniform_log_weights(len(loglik)).exp()
    for _ in range(MOST_ROUNDS):
        gains = likelihood @ (shares / (weights @ likelihood))  # load over weight, of each member
        weights = weights * gains
        if gains.max().log() < CLOSE_NATS:
            break
    return weights


def _refitted(loglik: Tensor, frame: Frame, members: tuple[int, ...]) -> tuple[Tensor, float]:
    table = loglik[list(members)]
    weights = refit(table, frame.weights)
    return weights, frame.mean(frame.losses(table, weights.clamp_min(math.ulp(0)).log()))


def _choices(before: tuple[int, ...], size: int, num_members: int) -> Iterable[tuple[int, ...]]:
    if num_members <= EXHAUSTIVE:
        return combinations(range(num_members), size)
    return [tuple(sorted((*before, member))) for member in range(num_members) if member not in before]
