"""One run as an object: what every step needs, and what it changes.

In: the parts that `prepare` puts together. Out: the same, and their state for checkpoints. Does nothing by itself.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

import torch
from torch import Tensor

from softspec.train.config import TrainConfig
from softspec.train.data.survey import Survey
from softspec.train.data.units import Unit
from softspec.train.loop.health import Starvation
from softspec.train.loop.optimizer import MembersAdamW
from softspec.train.loop.schedule import ExampleOrder, total_steps
from softspec.train.loop.stopping import EarlyStopping, MembersState, StoppingState
from softspec.train.members.members import Members
from softspec.train.objective.objective import Objective
from softspec.train.objective.prior import GaussianPrior
from softspec.train.processes import Processes


class TrainingState(TypedDict):
    """All that later steps depend on, in types that `torch.load` reads safely."""

    weights: list[Tensor]
    log_weights: Tensor
    optimizer: dict[str, Any]
    active_members: float
    starved_for: list[int]
    early_stopping: StoppingState


@dataclass
class Training:
    """What every step of one run needs. A step changes the members, the optimizer and the last fields.

    `log_weights` (K,) are those of the mixture; `active_members` is how many members a unit of the last micro-batch
    went to, the same in every process, which tells the next one whether two passes pay; `reach_nats` bounds
    responsibilities in the present step.
    """

    config: TrainConfig
    objective: Objective[Unit]
    processes: Processes
    members: Members
    optimizer: MembersAdamW
    examples: Sequence[Unit]
    held_out: Sequence[Unit]
    survey: Survey
    order: ExampleOrder
    prior: GaussianPrior | None
    log_weights: Tensor
    active_members: float
    starvation: Starvation
    early_stopping: EarlyStopping
    reach_nats: float = math.inf

    @property
    def total_steps(self) -> int:
        """How many optimizer steps the whole run has."""
        return total_steps(self.config, self.order.steps_per_epoch)

    def state_dict(self) -> TrainingState:
        """All that later steps depend on."""
        return {
            **self.members_state(),
            "optimizer": self.optimizer.state_dict(),
            "active_members": self.active_members,
            "starved_for": self.starvation.starved_for,
            "early_stopping": self.early_stopping.state,
        }

    def load_state_dict(self, state: TrainingState) -> None:
        """Take up where `state_dict` was called."""
        self.load_members({"weights": state["weights"], "log_weights": state["log_weights"]})
        self.optimizer.load_state_dict(state["optimizer"])
        self.active_members = state["active_members"]
        self.starvation.starved_for = state["starved_for"]
        self.early_stopping.state = state["early_stopping"]

    def members_state(self) -> MembersState:
        """A copy of what is exported, the adapters and the mixture weights, on the CPU."""
        weights = [weight.detach().to("cpu", copy=True) for weight in self.members.parameters()]
        return {"weights": weights, "log_weights": self.log_weights.cpu()}

    @torch.no_grad()
    def load_members(self, state: MembersState) -> None:
        """Put the adapters and mixture weights back that `members_state` returned."""
        for weight, saved in zip(self.members.parameters(), state["weights"], strict=True):
            weight.copy_(saved)
        self.log_weights = state["log_weights"].to(self.log_weights)
