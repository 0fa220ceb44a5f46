"""When to stop: once the held-out mixture NLL no longer falls.

In: the score of every evaluation, and the members that have it. Out: whether the run is over, and the best members.
"""

import math
from collections.abc import Callable
from typing import TypedDict

from torch import Tensor

from softspec.train.config import TrainConfig


class MembersState(TypedDict):
    """A copy of what is exported: the adapters' weights and the mixture's log-weights (K,)."""

    weights: list[Tensor]
    log_weights: Tensor


class StoppingState(TypedDict):
    """What early stopping remembers: the best evaluation with its members, and how many since then were no better."""

    best_step: int
    best_mixture_nll: float
    waited: int
    members: MembersState | None


class EarlyStopping:
    """The end of a run that no longer gets better; does nothing without `early_stopping_patience`.

    As transformers' callback: patience counts evaluations in a row that did not improve on the best by more than the
    threshold; the best itself is the best of all.
    """

    def __init__(self, config: TrainConfig) -> None:
        self.patience = config.early_stopping_patience
        self.threshold = config.early_stopping_threshold
        self.state: StoppingState = {
            "best_step": 0,
            "best_mixture_nll": math.inf,
            "waited": 0,
            "members": None,
        }

    @property
    def is_on(self) -> bool:
        """Whether anybody asked for it."""
        return self.patience is not None

    @property
    def is_over(self) -> bool:
        """Whether patience has ended."""
        return self.patience is not None and self.state["waited"] >= self.patience

    @property
    def best_members(self) -> MembersState | None:
        """The members with the best score; None before the first score."""
        return self.state["members"]

    def observe(self, step: int, mixture_nll: float, members: Callable[[], MembersState]) -> None:
        """Take note of an evaluation after `step` steps; `members` is called if they are the best so far."""
        if not self.is_on:
            return
        best = self.state["best_mixture_nll"]
        self.state["waited"] = 0 if mixture_nll < best - self.threshold else self.state["waited"] + 1
        if mixture_nll < best:
            self.state |= {"best_step": step, "best_mixture_nll": mixture_nll, "members": members()}

    def facts(self) -> dict[str, float]:
        """What the log and the manifest say of early stopping; empty if it is off."""
        if not self.is_on:
            return {}
        return {"best_step": self.state["best_step"], "best_mixture_nll": self.state["best_mixture_nll"]}

    def verdict(self, done: int) -> str:
        """One line for the user, at the end of the run."""
        step, nll = self.state["best_step"], self.state["best_mixture_nll"]
        return (
            f"softspec: ended after step {done}; kept are the members of step {step}, whose held-out mixture NLL was "
            f"the best: {nll:.4f} nats"
        )
