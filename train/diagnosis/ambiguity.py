"""The ambiguity decomposition: what a mixture gains from members that differ, and what that costs each of them.

In: how likely held-out rows are under the members, and under one adapter of the same budget if there is one. Out: both
numbers, with intervals. Knows no models.

gain(alpha) = mean [sum_k w_k nll_k - loss(alpha)], cost = mean [sum_k w_k nll_k - nll of the one adapter]. Members that
differ are worth it where gain(1) > cost: the mixture's NLL is then below that of the one adapter.
"""

from dataclasses import dataclass

from torch import Tensor

from softspec.maths.renyi import load, renyi_loss, responsibilities, routing_perplexity
from softspec.maths.stability import Estimate, bootstrap


@dataclass(frozen=True)
class Ambiguity:
    """Nats per row, with 95 % intervals over rows; `advantage` is gain(1) - cost, and None without a single adapter.

    `load` (K,) and `routing_perplexity` are those of units at alpha = 1.
    """

    gain: Estimate
    gain_of_loss: Estimate
    mixture_nll: Estimate
    member_nll: Estimate
    cost: Estimate | None
    advantage: Estimate | None
    load: tuple[float, ...]
    routing_perplexity: float


def ambiguity(
    loglik: Tensor,
    log_weights: Tensor,
    renyi_alpha: float,
    weights: Tensor,
    single: Tensor | None = None,
    unit_of: Tensor | None = None,
) -> Ambiguity:
    """Decompose the NLL of rows (K, N) under members with these log-weights (K,).

    Args:
        renyi_alpha: the order of the loss whose gain is told beside that of the mixture.
        weights: (N,), how much each row counts.
        single: (N,), the rows under one adapter.
        unit_of: (N,), which rows are routed as one, numbered from 0; each by itself without. Only `load` and
            `routing_perplexity` are about units: what is served is asked row by row.
    """

    def mean(values: Tensor) -> Estimate:
        return bootstrap(lambda counts: counts @ (weights * values) / (counts @ weights), loglik.shape[1])

    members, mixture = renyi_loss(loglik, log_weights, 0.0), renyi_loss(loglik, log_weights, 1.0)
    units = loglik
    if unit_of is not None:
        units = loglik.new_zeros(len(loglik), int(unit_of.max()) + 1).index_add(1, unit_of, weights * loglik)
    shares = responsibilities(units, log_weights, 1.0)
    return Ambiguity(
        gain=mean(members - mixture),
        gain_of_loss=mean(members - renyi_loss(loglik, log_weights, renyi_alpha)),
        mixture_nll=mean(mixture),
        member_nll=mean(members),
        cost=None if single is None else mean(members + single),
        advantage=None if single is None else mean(-single - mixture),
        load=tuple(load(shares, weights if unit_of is None else None).tolist()),
        routing_perplexity=routing_perplexity(shares, weights if unit_of is None else None).item(),
    )
