"""From the examples of a step to gradients: one pass, or two, over (unit, member) rows; what does not count is skipped.

In: a `Training` and the units of one optimizer step. Out: gradients in the members, and what the units came to. One
pass runs every row forward, and backward without the products of rows that hardly count. Two passes run all rows
forward, and then only those that count, forward and backward: less work and memory once members have specialised, and
the only way where rows of different micro-batches are routed together. Both give the same gradient.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from softspec.train.data.rows import in_batches
from softspec.train.loop.state import Training
from softspec.train.members.pairs import Rows
from softspec.train.objective.routing import Routing, routing_of
from softspec.train.objective.units import Likelihood

ONE_PASS_FROM = 0.3
"""The share of active rows: below it two passes are faster, and above it one."""


@dataclass(frozen=True)
class Pass:
    """What units came to, under which routing: `loglik` (K, N) of their items, nats, without gradients.

    `margins`: (K, B) of preferences, (K, 0) else. `active`: how many (unit, member) rows count; `skipped`: the
    responsibility of the others, summed.
    """

    routing: Routing
    loglik: Tensor
    margins: Tensor
    active: float
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
        active,
        skipped,
    )


def _own_passes(training: Training, units: Sequence[Any], alpha: float, scale: float) -> Pass:
    """Of a micro-batch that is routed by itself, in whichever way promises to be faster.

    Two passes do more for the rows that count and less for the others: they pay while few rows are active, as the
    micro-batch before this one tells.
    """
    config = training.config
    likelihood = training.objective.likelihood(training.members, units)
    routing = _routing(training, units, alpha)
    one_pass = config.granularity == "token" or training.active_members > ONE_PASS_FROM * config.num_members
    with torch.set_grad_enabled(one_pass):
        loglik, margins = _table(training, likelihood, len(units))
    known = loglik.detach()
    shares = routing.responsibilities(known, training.log_weights)
    of_items, pull = routing.of_items(shares), scale * routing.pull(shares)
    counted = of_items >= config.skip_responsibility
    training.active_members = counted.sum().item() / counted.shape[1]
    if one_pass:
        # Where no pull remains the gradients are zero, and the members' layers do not compute them.
        (-pull * counted * loglik).sum().backward()
    else:
        _second_pass(likelihood, counted, pull)
    return Pass(routing, known, margins.detach(), *_counts(counted, of_items, len(units)))


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
    for batch, table, of_items, pull in zip(
        batches,
        tables,
        routing.of_items(shares)[:, own].split(sizes, 1),
        (scale * routing.pull(shares))[:, own].split(sizes, 1),
        strict=True,
    ):
        # The prompts run again: keeping them for the whole step could need much memory.
        counted = of_items >= training.config.skip_responsibility
        _second_pass(training.objective.likelihood(training.members, batch), counted, pull)
        passes.append(Pass(routing, *table, *_counts(counted, of_items, len(batch))))
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


def _second_pass(likelihood: Likelihood, counted: Tensor, pull: Tensor) -> None:
    """Forward and backward for the (member, unit) rows that count, (K, B) bool."""
    member, unit = counted.nonzero(as_tuple=True)
    loglik, _ = likelihood(Rows(unit, member, counted.shape[1]))
    (-pull[counted] * loglik).sum().backward()


def _counts(counted: Tensor, of_items: Tensor, units: int) -> tuple[float, float]:
    """How many (unit, member) rows count, and the responsibility of the others; tokens are parts of a unit."""
    items_per_unit = counted.shape[1] / units
    return counted.sum().item() / items_per_unit, of_items[~counted].sum().item() / items_per_unit


def _routing(training: Training, units: Sequence[Any], alpha: float) -> Routing:
    return routing_of(training.config, units, alpha, training.mean_length, training.log_weights.device)
