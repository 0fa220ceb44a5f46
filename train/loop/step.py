"""One optimizer step of all members, on the same data.

In: a `Training` and a step number. Out: moved members, and what happened, for the log. Knows no files.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from softspec.errors import DivergedError
from softspec.train.config import TrainConfig
from softspec.train.data.units import Unit
from softspec.train.loop.facts import StepFacts
from softspec.train.loop.memory import advice_on_memory
from softspec.train.loop.passes import Pass, add_gradients
from softspec.train.loop.reseed import reseed
from softspec.train.loop.schedule import learning_rate, reach_nats, renyi_alpha
from softspec.train.loop.state import Training
from softspec.train.members.likelihood import tail_length
from softspec.train.objective.preferences import accuracies, mean_margins


def optimizer_step(training: Training, step: int) -> StepFacts:
    """Update all members once on the same examples; returns what happened, for the log.

    The gradient is that of K * mean loss: at alpha = 0 each adapter then sees exactly its own mean NLL.

    Raises:
        TrainingError: memory ran out, or the loss or its gradient is no longer finite.
    """
    with advice_on_memory(training.config, f"step {step + 1}"):
        return _step(training, step)


def _step(training: Training, step: int) -> StepFacts:
    started, config = time.monotonic(), training.config
    rate = learning_rate(config, step, training.total_steps)
    alpha = renyi_alpha(config, step, training.total_steps)
    training.reach_nats = reach_nats(config, step, training.total_steps)
    units = [training.examples[index] for index in training.order.indices(step)]
    units.sort(key=lambda unit: tail_length(unit, config.activation))  # any order gives the same gradient
    if training.members.dropout:  # so that a resumed run draws what it would have drawn
        training.members.dropout.generator.manual_seed(config.seed * 1_000_003 + step)
    done, penalty = _gradients(training, units, alpha)
    norms = _move_members(training, done, rate, step)
    shares = done.routing.responsibilities(done.loglik)
    member_load = done.routing.load(shares).tolist()
    loss, mixture_nll, member_nll = _losses(done)
    starved = training.starvation.begins(member_load)
    donors = _reseed(training, done, starved, step) if starved and config.reseeds_starved else None
    goal = done.routing.best_weights(shares)
    weights = _move_weights(training, goal) if config.weights_learning_rate else None
    is_dpo, unit_weights = config.objective == "dpo", done.routing.unit_weights
    return StepFacts(
        step=step + 1,
        epoch=round((step + 1) / training.order.steps_per_epoch, 4),
        renyi_alpha=done.routing.mean_order(done.loglik),
        loss=loss,
        mixture_nll=mixture_nll,
        member_nll=member_nll,
        load=member_load,
        routing_perplexity=done.routing.perplexity(shares).item(),
        active_members=done.active / len(units),
        skipped_responsibility=done.skipped / len(units),
        margins=mean_margins(done.margins, unit_weights) if is_dpo else None,
        accuracies=accuracies(done.margins, unit_weights) if is_dpo else None,
        prior_penalty=penalty,
        learning_rate=rate,
        gradient_norms=norms.tolist(),
        starved=starved,
        reseeded_from=donors,
        weights=weights,
        seconds=round(time.monotonic() - started, 3),
    )


def _gradients(training: Training, units: Sequence[Unit], alpha: float) -> tuple[Pass, float]:
    """Give the members the gradients of these units and of the prior; returns the penalty too, nats per example."""
    prior = training.prior
    training.optimizer.zero_grad()
    done = add_gradients(training, units, alpha)
    return done, prior.add_gradients(training.members, training.log_weights) if prior else 0.0


def _move_members(training: Training, done: Pass, rate: float, step: int) -> Tensor:
    """Clip the gradients and move the members that have one; returns the members' norms before clipping, (K,)."""
    members = training.members
    norms = members.clip_gradients(training.config.max_grad_norm)
    if not (done.loglik.isfinite().all() and norms.isfinite().all()):
        raise DivergedError(
            f"step {step + 1}: the loss or its gradient is no longer finite; lower learning_rate and start again"
        )
    training.optimizer.step(rate)
    assert step or members.moved().all(), (
        f"members did not move in the first step: {members.moved().tolist()}"
    )
    training.active_members = done.active_members
    return norms


def _losses(done: Pass) -> tuple[float, float, float]:
    """The loss of a step's units, the mixture's NLL and the mean of the members' NLLs; nats per example."""
    mixture = replace(done.routing, renyi_alpha=1.0, floor=0.0, length_divisor=1.0, reach_nats=math.inf)
    average = replace(mixture, renyi_alpha=0.0)
    loss, mixture_nll, member_nll = (
        routing.mean_loss(done.loglik).item() for routing in (done.routing, mixture, average)
    )
    return loss, mixture_nll, member_nll


def _reseed(training: Training, done: Pass, starved: Sequence[int], step: int) -> list[int]:
    """Give each starved member a new start; returns the members that they were copied from."""
    seed = training.config.seed + step
    return [reseed(training.members, training.optimizer, done, member, seed) for member in starved]


def _move_weights(training: Training, goal: Tensor) -> list[float]:
    """Move the mixture weights towards those best for this step's units; returns those that the step had."""
    weights = training.log_weights.exp().tolist()
    training.log_weights = moved_log_weights(training.log_weights, goal, training.config)
    return weights


def moved_log_weights(log_weights: Tensor, goal: Tensor, config: TrainConfig) -> Tensor:
    """The mixture log-weights (K,) after a step towards the weights `goal` (K,), never below the floor."""
    rate, least = config.weights_learning_rate, config.weights_floor / len(log_weights)
    moved = (1 - rate) * log_weights.exp() + rate * goal.to(log_weights)
    room = (moved - least).clamp_min(0)
    # A floor of 1, or next to it, leaves no room: all weights are equal.
    above = room / room.sum().clamp_min(1e-300)
    return (least + (1 - config.weights_floor) * above).log()
