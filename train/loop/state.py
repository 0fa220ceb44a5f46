"""One run as an object: what every step needs, and what it changes.

In: the parts that `prepare` puts together. Out: the same, and their state for checkpoints. Does nothing by itself.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from softspec.train.config import TrainConfig
from softspec.train.data.survey import Survey
from softspec.train.data.units import Unit
from softspec.train.loop.health import Starvation
from softspec.train.loop.schedule import ExampleOrder, total_steps
from softspec.train.loop.stopping import EarlyStopping
from softspec.train.members.members import Members
from softspec.train.objective.prior import GaussianPrior
from softspec.train.objective.units import Objective
from softspec.train.processes import Processes


@dataclass
class Training:
    """What every step of one run needs. A step changes the members, the optimizer and the last fields.

    `log_weights` (K,) are those of the mixture; `active_members` is how many members a unit of the last micro-batch
    went to, which tells the next one whether two passes pay.
    """

    config: TrainConfig
    objective: Objective[Unit]
    processes: Processes
    members: Members
    optimizer: torch.optim.Optimizer
    examples: Sequence[Unit]
    held_out: Sequence[Unit]
    survey: Survey
    order: ExampleOrder
    prior: GaussianPrior | None
    log_weights: Tensor
    active_members: float
    starvation: Starvation
    early_stopping: EarlyStopping

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run."""
        return total_steps(self.config, self.order.steps_per_epoch)

    def state_dict(self) -> dict[str, Any]:
        """All that later steps depend on, as torch's own state dicts."""
        return {
            **self.members_state(),
            "optimizer": self.optimizer.state_dict(),
            "active_members": self.active_members,
            "starved_for": self.starvation.starved_for,
            "early_stopping": self.early_stopping.state,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.load_members(state)
        self.optimizer.load_state_dict(state["optimizer"])
        self.active_members = state["active_members"]
        self.starvation.starved_for = state["starved_for"]
        self.early_stopping.state = state["early_stopping"]

    def members_state(self) -> dict[str, Any]:
        """What is exported: a copy of the adapters and of the mixture weights."""
        weights = [weight.detach().to("cpu", copy=True) for weight in self.members.parameters()]
        return {"weights": weights, "log_weights": self.log_weights.cpu()}

    @torch.no_grad()
    def load_members(self, state: dict[str, Any]) -> None:
        """The inverse of `members_state`."""
        for weight, saved in zip(self.members.parameters(), state["weights"], strict=True):
            weight.copy_(saved)
        self.log_weights = state["log_weights"].to(self.log_weights)
