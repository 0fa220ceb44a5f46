"""The schedule: which learning rate and which alpha an optimizer step has.

In: a `TrainConfig` and a step number. Out: numbers. Pure functions of the step, so a resumed run
needs no state to continue with the same numbers.
"""

import math

from train.config import TrainConfig


def total_steps(config: TrainConfig, steps_per_epoch: int) -> int:
    """Optimizer steps of the whole run."""
    if config.max_steps is not None:
        return config.max_steps
    return math.ceil(config.num_epochs * steps_per_epoch)


def learning_rate(config: TrainConfig, step: int, total: int) -> float:
    """Linear warm-up that starts above zero, then the configured decay, which ends just above zero."""
    warmup = math.ceil(config.warmup_ratio * total)
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    done = (step - warmup) / max(1, total - warmup)
    factor = {"constant": 1.0, "linear": 1 - done, "cosine": 0.5 + 0.5 * math.cos(math.pi * done)}
    return config.learning_rate * factor[config.lr_scheduler_type]


def renyi_alpha(config: TrainConfig, step: int, total: int) -> float:
    """Linear from 0 to the configured order over the first `alpha_warmup_ratio` of the run."""
    warmup = math.ceil(config.alpha_warmup_ratio * total)
    return config.renyi_alpha * (step / warmup if step < warmup else 1)
