"""How fast members part: the growth of what routing tells members by, and the steps until it tells them apart.

In: the spread of members at some steps. Out: its rate with an interval, and the steps that are left. The spread is
log K minus the mean entropy of responsibilities, nats: 0 while members are alike, log K when each unit has its member.
It grows exponentially from a point that is unstable, and falls or stands still otherwise.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from tqdm import tqdm

from softspec.maths.renyi import responsibilities, routing_perplexity
from softspec.maths.stability import Estimate
from softspec.train.config import TrainConfig
from softspec.train.data.units import Unit
from softspec.train.loop.folder import LOG_NAME
from softspec.train.loop.state import Training
from softspec.train.loop.step import optimizer_step
from softspec.train.objective.routing import routing_of
from softspec.train.processes import is_main_process

LEAST = 5
"""Points without which there is no line to speak of."""
LOOKS = 16
"""At most so many times a short run is looked at."""
APART_NATS = math.log(2) / 2
"""Members are apart from this spread on: half of that of two camps of members, however many there are in each."""
STANDARD_ERRORS = 2.4
"""On either side of a slope: 95 % of Student's t with six degrees of freedom."""
DUST = 1e-9
"""Nats below which a spread is rounding."""


@dataclass(frozen=True)
class Growth:
    """The spread of K members at some steps, nats, and its rate over the later half of them, per step.

    `rate` is the slope of log spread, twice that of the members' distance, by least squares, with 2.4 standard errors
    on either side; None where there are too few of them. `control` is the same of members that learn alone.
    `is_finished`: of a run that has come to its end, rather than of its first steps.
    """

    num_members: int
    steps: tuple[int, ...]
    spreads: tuple[float, ...]
    rate: Estimate | None
    control: Estimate | None = None
    is_finished: bool = False

    @property
    def are_apart(self) -> bool:
        """Whether members share few units by now."""
        return bool(self.spreads) and self.spreads[-1] >= APART_NATS

    @property
    def grows(self) -> bool:
        """Whether the spread grows, and faster than that of members that learn alone."""
        floor = max(0.0, self.control.value) if self.control else 0.0
        return self.rate is not None and self.rate.low > 0 and self.rate.value > floor

    @property
    def steps_to_go(self) -> int | None:
        """Steps until members are apart at this rate; 0 if they are, None if it does not grow."""
        if self.are_apart:
            return 0
        if not self.grows or self.rate is None:
            return None
        return math.ceil(math.log(APART_NATS / max(self.spreads[-1], DUST)) / self.rate.value)


def growth(num_members: int, points: Sequence[tuple[int, float]], control: Estimate | None = None) -> Growth:
    """The growth of a run from its spreads after some steps, (step, nats)."""
    steps, spreads = tuple(step for step, _ in points), tuple(spread for _, spread in points)
    return Growth(num_members, steps, spreads, rate_of(points), control)


def rate_of(points: Sequence[tuple[int, float]]) -> Estimate | None:
    """The slope of log spread per step over the later half of the points; None for fewer than five in it."""
    later = [(step, math.log(max(spread, DUST))) for step, spread in points[len(points) // 2 :]]
    if len(later) < LEAST:
        return None
    x, y = torch.tensor(later, dtype=torch.float64).T
    x = x - x.mean()
    slope = (x * y).sum() / x.square().sum()
    rest = y - y.mean() - slope * x
    error = (rest.square().sum() / (len(x) - 2) / x.square().sum()).sqrt().item()
    half = STANDARD_ERRORS * error
    return Estimate(slope.item(), slope.item() - half, slope.item() + half, len(x))


def logged_growth(ensemble: Path, num_members: int) -> Growth:
    """The growth that the log of a finished run tells, from the perplexity of its routing; empty without a log."""
    log = ensemble / LOG_NAME
    lines = log.read_text(encoding="utf-8").splitlines() if log.is_file() else []
    events = [json.loads(line) for line in lines]
    points = [
        (event["step"], math.log(num_members) - math.log(event["routing_perplexity"]))
        for event in events
        if "routing_perplexity" in event and "step" in event
    ]
    return replace(growth(num_members, points), is_finished=True)


def run_shortly(training: Training, units: Sequence[Unit], steps: int, what: str) -> list[tuple[int, float]]:
    """Take the first steps of a run; the spread of its members on some units after each of up to 16 of them."""
    every, points = max(1, steps // LOOKS), []
    for step in tqdm(range(steps), desc=what, unit="step", disable=not is_main_process()):
        optimizer_step(training, step)
        if (step + 1) % every == 0:
            points.append((step + 1, spread(training, units)))
    return points


@torch.no_grad()
def spread(training: Training, units: Sequence[Unit], renyi_alpha: float | None = None) -> float:
    """log K minus the log of the routing's perplexity on these units, nats; at alpha 0 as if it were 1."""
    config = training.config
    size = config.micro_batch_size
    tables = [
        training.objective.batch(training.members, units[start : start + size]).table().loglik
        for start in range(0, len(units), size)
    ]
    order = renyi_alpha or config.renyi_alpha or 1.0
    routing = routing_of(config, units, training.log_weights, order, training.survey.mean_length)
    shares = responsibilities(routing.bundles(torch.cat(tables, 1)), training.log_weights, order)
    return math.log(config.num_members) - routing_perplexity(shares).log().item()


def shortened(config: TrainConfig, steps: int, renyi_alpha: float) -> TrainConfig:
    """The configuration of a run of so many steps that has no end in sight: at the rate that it would have for long."""
    return config.model_copy(
        update={
            "max_steps": steps,
            "renyi_alpha": renyi_alpha,
            "lr_scheduler_type": "constant",
            "schedule": "plain",
        }
    )
