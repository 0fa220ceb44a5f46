"""From the examples of a step to gradients: one pass over every row, or two that skip what does not count.

In: a `Training` and the units of one optimizer step. Out: gradients in the members, and what the units came to. One
pass runs every (unit, member) row forward and backward. Two passes run all rows forward, and then forward and backward
only those with a responsibility: less work once members have specialised, and the only way where rows of different
micro-batches are routed together. Both give the gradient of the same objective.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from train.data import in_batches
from train.objective import Likelihood
from train.routing import Routing, routing_of
from train.rows import Rows
from train.training import Training


@dataclass(frozen=True)
class Pass:
    """What units came to, under which routing: `loglik` (K, N) of their items, nats, without gradients.

    `margins`: (K, B) of preferences, (K, 0) else. `active`: how many (unit, member) rows ran backward; `skipped`: the
    responsibility of the others, summed.
    """

    routing: Routing
    loglik: Tensor
    margins: Tensor
    active: int
    skipped: float


def add_gradients(training: Training, units: Sequence[Any], alpha: float) -> Pass:
    """Those of K * mean loss over the units of one step, summed over processes; each process computes its own part.

    Returns:
        What all units of the step came to, the same in every process.
    """
    config, processes = training.config, training.processes
    parts = processes.deal(units)
    scale = config.num_members / len(units)
    batches = list(in_batches(parts[processes.index], config.micro_batch_size))
    together = _routing(training, [unit for part in parts for unit in part], alpha)
    with processes.autocast():
        if config.granularity == "group" and len(batches) * processes.count > 1:
            passes = _coupled_passes(training, batches, together, scale)
        else:
            passes = [_own_passes(training, batch, alpha, scale) for batch in batches]
    processes.sum_gradients(training.members.parameters())
    counts = torch.tensor([[done.active for done in passes], [done.skipped for done in passes]])
    active, skipped = processes.gather_columns(counts).sum(1).tolist()
    return Pass(
        together,
        processes.gather_columns(_joined(training, [done.loglik for done in passes])),
        processes.gather_columns(_joined(training, [done.margins for done in passes])),
        round(active),
        skipped,
    )


def _own_passes(training: Training, units: Sequence[Any], alpha: float, scale: float) -> Pass:
    """Of a micro-batch that is routed by itself, in whichever way promises to be faster.

    A backward pass costs about as much as a forward pass: two passes pay while less than half of the rows are active,
    as the micro-batch before this one tells.
    """
    config, log_weights = training.config, training.log_weights
    likelihood = training.objective.likelihood(training.members, units)
    routing = _routing(training, units, alpha)
    one_pass = config.granularity == "token" or training.active_members > config.num_members / 2
    with torch.set_grad_enabled(one_pass):
        loglik, margins = _table(training, likelihood, len(units))
    if one_pass:
        (scale * routing.loss(loglik, log_weights)).backward()
        loglik, margins = loglik.detach(), margins.detach()
    shares = routing.responsibilities(loglik, log_weights)
    of_items = routing.of_items(shares)
    training.active_members = (of_items >= config.skip_responsibility).sum().item() / of_items.shape[1]
    if one_pass:
        return Pass(routing, loglik, margins, config.num_members * len(units), 0.0)
    return Pass(
        routing, loglik, margins, *_backward(training, likelihood, of_items, scale * routing.pull(shares))
    )


def _coupled_passes(
    training: Training, batches: Sequence[Sequence[Any]], routing: Routing, scale: float
) -> list[Pass]:
    """Of micro-batches whose units are routed together with those of other ones, here or in other processes."""
    with torch.no_grad():
        tables = [
            _table(training, training.objective.likelihood(training.members, batch), len(batch))
            for batch in batches
        ]
    everyones = training.processes.gather_columns(_joined(training, [loglik for loglik, _ in tables]))
    shares = routing.responsibilities(everyones, training.log_weights)
    sizes = [len(batch) for batch in batches]
    own = training.processes.own_columns(everyones.shape[1])
    passes = []
    for batch, table, share, pull in zip(
        batches,
        tables,
        routing.of_items(shares)[:, own].split(sizes, 1),
        (scale * routing.pull(shares))[:, own].split(sizes, 1),
        strict=True,
    ):
        # The prompts run again: keeping them for the whole step could need much memory.
        likelihood = training.objective.likelihood(training.members, batch)
        passes.append(Pass(routing, *table, *_backward(training, likelihood, share, pull)))
    return passes


def _table(training: Training, likelihood: Likelihood, count: int) -> tuple[Tensor, Tensor]:
    """Every member on every unit: log-likelihoods of their items, (K, N), and margins, (K, B) or (K, 0)."""
    num_members = training.config.num_members
    loglik, margins = likelihood(Rows.all_pairs(num_members, count, training.members.model.device))
    known = [] if margins is None else [margins.view(num_members, -1)]
    return loglik.view(num_members, -1), _joined(training, known)


def _joined(training: Training, tables: Sequence[Tensor]) -> Tensor:
    """Columns side by side, (K, N); of no tables, (K, 0)."""
    return torch.cat([training.log_weights.new_zeros(training.config.num_members, 0), *tables], 1)


def _backward(training: Training, likelihood: Likelihood, shares: Tensor, pull: Tensor) -> tuple[int, float]:
    """Gradients of the rows whose responsibility counts; returns how many these are, and what the others had."""
    active = shares >= training.config.skip_responsibility
    member, unit = active.nonzero(as_tuple=True)
    loglik, _ = likelihood(Rows(unit, member, shares.shape[1]))
    (-pull[active] * loglik).sum().backward()
    return len(unit), shares[~active].sum().item()


def _routing(training: Training, units: Sequence[Any], alpha: float) -> Routing:
    return routing_of(training.config, units, alpha, training.mean_length, training.log_weights.device)
