"""From the units of a step to gradients: the loss, in one pass or two over pairs of unit and member.

In: a `Training` and the units of one optimizer step. Out: gradients in the members, and what the units came to.

The loss is the alpha-Renyi loss (`Routing.loss`), and nobody differentiates it. Its gradient in the log-likelihoods is
minus the responsibilities r, so these come first and are constants from then on; `surrogate_loss`, minus r times the
log-likelihood, has the same gradient, and that is what `backward` is called on. A pair whose r is next to nothing can
therefore be left out.

One pass runs every pair forward, and backward without the products of pairs that hardly count. Two passes run all pairs
forward, and then only those that count, forward and backward: less work and memory once members have specialised, and
the only way where units of different micro-batches are routed together. Both give the same gradient.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from softspec.maths.renyi import surrogate_loss
from softspec.train.data.units import Unit, in_batches
from softspec.train.loop.state import Training
from softspec.train.members.likelihood import tail_length
from softspec.train.members.pairs import Pairs
from softspec.train.objective.objective import UnitBatch
from softspec.train.objective.routing import Routing, Table, routing_of

ONE_PASS_FROM = 0.3
"""The share of active pairs: below it two passes are faster, and above it one."""
LIKE_LENGTHS = 1.4
"""The longest of units that run as one on a CPU, in lengths of the shortest."""


@dataclass(frozen=True)
class Pass:
    """What the units of a step came to, under which routing: `loglik` (K, N) of their items, nats, without gradients.

    `margins`: (K, B) of preferences, (K, 0) of completions. `active`: how many pairs of unit and member count;
    `skipped`: the responsibility of the others, summed. `active_members`: how many members a unit of the last
    micro-batch went to, the mean over the processes, so that a resumed run goes on alike in all of them.
    """

    routing: Routing
    loglik: Tensor
    margins: Tensor
    active: float
    skipped: float
    active_members: float


@dataclass(frozen=True)
class _Part:
    """What one micro-batch came to; `active` and `skipped` as in a `Pass`."""

    table: Table
    active: float
    skipped: float


def add_gradients(training: Training, units: Sequence[Unit], alpha: float) -> Pass:
    """Add the gradients of K * mean loss over the units of one step; each process computes its own part of them.

    Returns:
        What all units of the step came to, the same in every process.
    """
    config, processes = training.config, training.processes
    parts = processes.deal(units)
    batches = list(in_batches(parts[processes.index], config.micro_batch_size))
    routing = _routing(training, [unit for part in parts for unit in part], alpha)
    scale = config.num_members / len(units)
    with processes.autocast():
        if config.granularity == "group" and (processes.count > 1 or len(batches) > 1):
            done, active_members = _together(training, batches, routing, scale), training.active_members
        else:
            done, active_members = _one_by_one(training, batches, alpha, scale)
    processes.sum_gradients(training.members.parameters())
    counts = torch.tensor([[part.active for part in done], [part.skipped for part in done]])
    active, skipped = processes.gather_columns(counts).sum(1).tolist()
    last = processes.gather_columns(torch.tensor([[active_members]], dtype=torch.float64))
    return Pass(
        routing,
        processes.gather_columns(_joined(training, [part.table.loglik for part in done])),
        processes.gather_columns(_joined(training, [part.table.margins for part in done])),
        active,
        skipped,
        last.mean().item(),
    )


def _one_by_one(
    training: Training, batches: Sequence[Sequence[Unit]], alpha: float, scale: float
) -> tuple[list[_Part], float]:
    """Add the gradients of micro-batches that are routed by themselves, in whichever way promises to be faster.

    Two passes do more for the pairs that count and less for the others: they pay while few pairs are active, as the
    micro-batch before tells; where layers are shared, the step before, which all processes know.

    Returns:
        What the micro-batches came to, and how many members a unit of the last one went to.
    """
    config, members, active_members = training.config, training.members, training.active_members
    done = []
    for units, counts in members.rounds(batches, [training.objective.spare]):
        likely = training.active_members if members.sharing else active_members
        one_pass = config.granularity == "token" or likely > ONE_PASS_FROM * config.num_members
        part = _alone(training, units, alpha, scale * counts, one_pass)
        if counts:
            done.append(part)
            active_members = part.active / len(units)
    return done, active_members


def _alone(training: Training, units: Sequence[Unit], alpha: float, scale: float, one_pass: bool) -> _Part:
    """Add the gradients of a micro-batch that is routed by itself, in one pass or in two."""
    routing = _routing(training, units, alpha)
    batches = [training.objective.batch(training.members, piece) for piece in _pieces(training, units)]
    with torch.set_grad_enabled(one_pass):
        tables = [batch.table() for batch in batches]
    loglik = torch.cat([table.loglik for table in tables], 1)
    known = Table(loglik.detach(), torch.cat([table.margins.detach() for table in tables], 1))
    shares = routing.responsibilities(known.loglik)
    of_items, pull = routing.of_items(shares), scale * routing.pull(shares)
    counted = of_items >= training.config.skip_responsibility
    if one_pass:
        # `pull` is constant. Where none is left the gradient is zero, and the members' layers do not compute it.
        surrogate_loss(loglik, counted * pull).sum().backward()
    else:
        sizes = [table.loglik.shape[1] for table in tables]
        for batch, *part in zip(batches, counted.split(sizes, 1), pull.split(sizes, 1), strict=True):
            _second_pass(batch, *part)
    return _part(known, counted, of_items, len(units))


def _pieces(training: Training, units: Sequence[Unit]) -> list[list[Unit]]:
    """A micro-batch in pieces of nearly one length, which need no padding; whole on a GPU, which likes it large.

    Whole too where processes share layers: they must run as many passes.
    """
    if training.members.model.device.type != "cpu" or training.members.sharing:
        return [list(units)]
    pieces: list[list[Unit]] = []
    lengths: list[int] = []
    for unit in units:
        length = tail_length(unit, training.config.activation)
        if not lengths or max(*lengths, length) > LIKE_LENGTHS * min(*lengths, length):
            pieces.append([])
            lengths = []
        pieces[-1].append(unit)
        lengths.append(length)
    return pieces


def _together(
    training: Training, batches: Sequence[Sequence[Unit]], routing: Routing, scale: float
) -> list[_Part]:
    """Add the gradients of micro-batches whose units are routed with those of others, here or in other processes."""
    objective, members, processes = training.objective, training.members, training.processes
    rounds, tables = members.rounds(batches, [objective.spare]), []
    for units, counts in rounds:
        with torch.no_grad():
            table = objective.batch(members, units).table()
        if counts:
            tables.append(table)
    everyones = processes.gather_columns(_joined(training, [table.loglik for table in tables]))
    shares = routing.responsibilities(everyones)
    sizes, own = [len(units) for units in batches], processes.own_columns(everyones.shape[1])
    columns = routing.of_items(shares)[:, own].split(sizes, 1)
    pulls = (scale * routing.pull(shares))[:, own].split(sizes, 1)
    done = []
    for units, table, of_items, pull in zip(batches, tables, columns, pulls, strict=True):
        counted = of_items >= training.config.skip_responsibility
        # The prompts run again: keeping them for the whole step could need much memory.
        _second_pass(objective.batch(members, units), counted, pull)
        done.append(_part(table, counted, of_items, len(units)))
    for units, _ in rounds[len(batches) :]:
        every = torch.ones(members.num_members, len(units), dtype=torch.bool, device=everyones.device)
        _second_pass(objective.batch(members, units), every, torch.zeros_like(every, dtype=everyones.dtype))
    return done


def _second_pass(batch: UnitBatch, counted: Tensor, pull: Tensor) -> None:
    """Run the pairs of member and unit that count, (K, B) bool, forward and backward; `pull` (K, B) is constant."""
    member, unit = counted.nonzero(as_tuple=True)
    loglik = batch.loglik(Pairs(unit, member, counted.shape[1]))
    surrogate_loss(loglik, pull[counted]).sum().backward()


def _part(table: Table, counted: Tensor, of_items: Tensor, units: int) -> _Part:
    """What so many units came to, from the responsibilities of their items (K, N); tokens are parts of a unit."""
    items_per_unit = counted.shape[1] / units
    active, skipped = counted.sum().item(), of_items[~counted].sum().item()
    return _Part(table, active / items_per_unit, skipped / items_per_unit)


def _joined(training: Training, tables: Sequence[Tensor]) -> Tensor:
    """Tables side by side, (K, N); without any, (K, 0)."""
    return torch.cat([training.log_weights.new_zeros(training.config.num_members, 0), *tables], 1)


def _routing(training: Training, units: Sequence[Unit], alpha: float) -> Routing:
    """The routing of these units in a step whose order is `alpha`."""
    mean_length = training.survey.mean_length * training.order.examples_per_piece
    return routing_of(training.config, units, training.log_weights, alpha, mean_length, training.reach_nats)
