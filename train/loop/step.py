"""One optimizer step of all members, on the same data.

In: a `Training` and a step number. Out: moved members, and what happened, for the log. Knows no files.
"""

import time
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from softspec.errors import TrainingError
from softspec.maths.renyi import load, routing_perplexity
from softspec.train.config import TrainConfig
from softspec.train.loop.passes import add_gradients
from softspec.train.loop.reseed import reseed
from softspec.train.loop.schedule import learning_rate, renyi_alpha
from softspec.train.loop.state import Training
from softspec.train.objective.preferences import margin_facts
from softspec.train.objective.prior import add_prior_gradients
from softspec.train.objective.routing import Routing


def optimizer_step(training: Training, step: int) -> dict[str, Any]:
    """One update of all members on the same examples; returns what happened, for the log.

    The gradient is that of K * mean loss: at alpha = 0 each adapter then sees exactly its own mean NLL.
    """
    config, members, optimizer = training.config, training.members, training.optimizer
    started = time.monotonic()
    rate = learning_rate(config, step, training.total_steps)
    for group in optimizer.param_groups:
        group["lr"] = rate
    alpha = renyi_alpha(config, step, training.total_steps)
    units = [training.examples[index] for index in training.order.indices(step)]
    optimizer.zero_grad()
    try:
        done = add_gradients(training, units, alpha)
    except torch.OutOfMemoryError as error:
        raise TrainingError(
            f"step {step + 1}: out of memory; lower micro_batch_size, which is {config.micro_batch_size} (and raise "
            f"gradient_accumulation_steps as much), or max_length, which is {config.max_length}"
        ) from error
    penalty = add_prior_gradients(training) if config.prior_strength else 0.0
    norms = members.clip_gradients(config.max_grad_norm)
    if not (done.loglik.isfinite().all() and norms.isfinite().all()):
        raise TrainingError(
            f"step {step + 1}: the loss or its gradient is no longer finite; lower learning_rate and start again"
        )
    optimizer.step()
    assert step or members.moved().all(), (
        f"members did not move in the first step: {members.moved().tolist()}"
    )
    facts = {
        "step": step + 1,
        "epoch": round((step + 1) / training.order.steps_per_epoch, 4),
        "renyi_alpha": alpha,
        **_loss_facts(done.routing, done.loglik, training.log_weights, len(units)),
        "active_members": done.active / len(units),
        "skipped_responsibility": done.skipped / len(units),
        **(margin_facts(done.margins) if config.objective == "dpo" else {}),
        "prior_penalty": penalty,
        "learning_rate": rate,
        "gradient_norms": norms.tolist(),
    }
    facts["starved"] = training.starvation.begins(facts["load"])
    if config.reseed_starved:
        facts["reseeded_from"] = [reseed(training, done, member, step) for member in facts["starved"]]
    if config.weights_learning_rate:
        facts["weights"] = training.log_weights.exp().tolist()
        training.log_weights = moved_log_weights(training.log_weights, facts["load"], config)
    return {**facts, "seconds": round(time.monotonic() - started, 3)}


def moved_log_weights(log_weights: Tensor, member_load: list[float], config: TrainConfig) -> Tensor:
    """A step of expectation maximisation: the mixture weights (K,) move towards the load, but never below the floor."""
    rate, least = config.weights_learning_rate, config.weights_floor / len(member_load)
    goal = torch.tensor(member_load, dtype=log_weights.dtype, device=log_weights.device)
    moved = (1 - rate) * log_weights.exp() + rate * goal
    room = (moved - least).clamp_min(0)
    return (least + (1 - config.weights_floor) * room / room.sum()).log()


def _loss_facts(routing: Routing, loglik: Tensor, log_weights: Tensor, count: int) -> dict[str, Any]:
    """The honest loss and how the members shared these examples, from (K, N); nats per example."""
    shares = routing.responsibilities(loglik, log_weights)
    mixture = replace(routing, renyi_alpha=1.0, floor=0.0)
    average = replace(routing, renyi_alpha=0.0, floor=0.0)
    return {
        "loss": routing.loss(loglik, log_weights).item() / count,
        "mixture_nll": mixture.loss(loglik, log_weights).item() / count,
        "member_nll": average.loss(loglik, log_weights).item() / count,
        "load": load(shares).tolist(),
        "routing_perplexity": routing_perplexity(shares).item(),
    }
