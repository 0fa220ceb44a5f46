"""One optimizer step of all members, on the same data.

In: a `Training` and a step number. Out: moved members, and what happened, for the log. Knows no files.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from softspec.mixture import sequence_loglik
from softspec.renyi import load, renyi_loss, responsibilities, routing_perplexity
from train.checkpoint import RunFolder
from train.config import TrainConfig
from train.data import in_batches
from train.dpo import margin_facts
from train.errors import TrainingError
from train.members import Members
from train.objective import Objective
from train.schedule import learning_rate, renyi_alpha, step_indices, steps_per_epoch, total_steps


@dataclass(frozen=True)
class Training:
    """What every step of one run needs."""

    config: TrainConfig
    objective: Objective
    run: RunFolder
    members: Members
    optimizer: torch.optim.Optimizer
    examples: list[Any]
    held_out: list[Any]
    log_weights: Tensor
    prior_mean: list[Tensor]
    examples_digest: str

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run."""
        return total_steps(self.config, len(self.examples))


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
    chosen = [training.examples[index] for index in step_indices(config, len(training.examples), step)]
    optimizer.zero_grad()
    try:
        loglik, gaps = add_gradients(training, chosen, alpha)
    except torch.OutOfMemoryError as error:
        raise TrainingError(
            f"step {step + 1}: out of memory; lower micro_batch_size, which is {config.micro_batch_size} (and raise "
            f"gradient_accumulation_steps as much), or max_length, which is {config.max_length}"
        ) from error
    penalty = add_prior_gradients(training) if config.prior_strength else 0.0
    norms = members.clip_gradients(config.max_grad_norm)
    if not (loglik.isfinite().all() and norms.isfinite().all()):
        raise TrainingError(
            f"step {step + 1}: the loss or its gradient is no longer finite; lower learning_rate and start again"
        )
    optimizer.step()
    assert step or members.moved().all(), (
        f"members did not move in the first step: {members.moved().tolist()}"
    )
    return {
        "step": step + 1,
        "epoch": round((step + 1) / steps_per_epoch(config, len(training.examples)), 4),
        "renyi_alpha": alpha,
        **_loss_facts(loglik, training.log_weights, alpha, config.responsibility_floor),
        **(margin_facts(gaps) if gaps is not None else {}),
        "prior_penalty": penalty,
        "learning_rate": rate,
        "gradient_norms": norms.tolist(),
        "seconds": round(time.monotonic() - started, 3),
    }


def add_gradients(training: Training, units: Sequence[Any], alpha: float) -> tuple[Tensor, Tensor | None]:
    """Those of the data in one step, micro-batch by micro-batch; returns `Objective.loglik` of all units, detached."""
    config = training.config
    logliks, margins = [], []
    for micro_batch in in_batches(units, config.micro_batch_size):
        loglik, gaps = training.objective.loglik(training.members, micro_batch)
        losses = renyi_loss(loglik, training.log_weights, alpha, config.responsibility_floor)
        (config.num_members * losses.sum() / len(units)).backward()
        logliks.append(loglik.detach())
        margins += [] if gaps is None else [gaps.detach()]
    return torch.cat(logliks, 1), torch.cat(margins, 1) if margins else None


def prior_mean(config: TrainConfig, members: Members) -> list[Tensor]:
    """Where the prior pulls untrained members, in the shapes of their parameters; nothing where there is no prior."""
    if not config.prior_strength:
        return []
    return [weight.detach() * (config.prior_mean == "init") for weight in members.parameters()]


def add_prior_gradients(training: Training) -> float:
    """Those of the prior in one step; returns its penalty, nats per example."""
    penalty = prior_penalty(training)
    (training.config.num_members * penalty).backward()
    return penalty.item()


def prior_penalty(training: Training) -> Tensor:
    """The Gaussian prior's part of the objective, nats per example: what it adds to the mean `loss`."""
    config = training.config
    distances = training.members.squared_distance(training.prior_mean).double()
    scale = config.prior_strength / (2 * config.prior_std**2 * len(training.examples))
    return scale * (training.log_weights.exp() * distances).sum()


def _loss_facts(loglik: Tensor, log_weights: Tensor, alpha: float, floor: float) -> dict[str, Any]:
    """The honest loss and how the members shared these examples, from (K, B)."""
    shares = responsibilities(loglik, log_weights, alpha, floor)
    return {
        "loss": renyi_loss(loglik, log_weights, alpha, floor).mean().item(),
        "mixture_nll": -sequence_loglik(log_weights, loglik).mean().item(),
        "member_nll": -loglik.mean().item(),
        "load": load(shares).tolist(),
        "routing_perplexity": routing_perplexity(shares).item(),
    }
