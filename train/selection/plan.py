"""What is tried: the configurations, for how many steps, and what that costs at most, in adapter-steps.

In: a `TrainConfig` and what the user wants tried. Out: a `Plan`. Trains nothing.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from pydantic import ValidationError

from softspec.artefact.validation import first_problem
from softspec.errors import ConfigError
from softspec.train.config import TrainConfig

DEFAULT_ALPHAS = (0.0, 0.3, 0.5, 0.8, 1.0)
PROBED = 2
"""How many orders the stability of one adapter adds to the usual grid, at most: the critical one and half of it."""
LEAST_DISTANCE = 0.05
"""Orders that are nearer to each other than this are one."""
RUNGS = 4
"""Into how many parts a configuration's steps are cut; after each it is scored, and may be dropped."""
BRANCH_RUNG = 2
"""After so many of them the orders between 0 and the largest one begin, from the members of the largest one."""
FEWEST_STEPS = 8


@dataclass(frozen=True)
class Wanted:
    """What the user wants tried; empty is what the configuration says, of alphas the usual grid.

    `members` are the numbers that may be kept, of which the largest is trained. `budget` is in adapter-steps.
    """

    alphas: tuple[float, ...] = ()
    members: tuple[int, ...] = ()
    ranks: tuple[int, ...] = ()
    layers: tuple[str, ...] = ()
    budget: int | None = None
    final_share: float = 0.3

    def check(self) -> None:
        """Refuse what could not be tried.

        Raises:
            ConfigError: a number out of range.
        """
        for alpha in self.alphas:
            if not 0 <= alpha <= 1:
                raise ConfigError(f"--alphas has {alpha:g}: expected numbers from 0 to 1")
        for flag, numbers in (("members", self.members), ("ranks", self.ranks)):
            for number in numbers:
                if number < 1:
                    raise ConfigError(f"--{flag} has {number}: expected whole numbers from 1")
        for layers in self.layers:
            if layers not in ("all", "top_third"):
                raise ConfigError(f"--layers has '{layers}': expected all, top_third, or both")
        if not 0.1 <= self.final_share <= 0.9:
            raise ConfigError(f"--final-share is {self.final_share:g}: expected a number from 0.1 to 0.9")


@dataclass(frozen=True)
class Shape:
    """The adapters of a configuration: their rank, and `layers_to_transform`."""

    rank: int
    layers: tuple[int, ...] | str

    def __str__(self) -> str:
        layers = self.layers if isinstance(self.layers, str) else "-".join(map(str, self.layers))
        return f"rank {self.rank}, layers {layers}"


@dataclass(frozen=True)
class Configuration:
    """One way to train, for so many optimizer steps; all else is as the user's configuration says."""

    num_members: int
    renyi_alpha: float
    shape: Shape
    steps: int

    @property
    def name(self) -> str:
        """What its folder is called."""
        return (
            f"{self.num_members}-members alpha-{self.renyi_alpha:g} {self.shape} {self.steps}-steps".replace(
                ", ", " "
            ).replace(" ", "_")
        )

    def __str__(self) -> str:
        if self.is_single:
            return f"one adapter ({self.shape}, {self.steps} steps)"
        return f"alpha {self.renyi_alpha:g} with {self.num_members} members ({self.shape})"

    @property
    def is_single(self) -> bool:
        """Whether it is one adapter, for which alpha means nothing."""
        return self.num_members == 1

    def applied(self, config: TrainConfig) -> TrainConfig:
        """The user's configuration with this one's settings; the adapters' scaling stays.

        Raises:
            ConfigError: they do not go together.
        """
        scaling = config.lora_alpha / config.lora_r
        changes: dict[str, Any] = {
            "num_members": self.num_members,
            "renyi_alpha": self.renyi_alpha,
            "lora_r": self.shape.rank,
            "lora_alpha": max(1, round(scaling * self.shape.rank)),
            "layers_to_transform": self.shape.layers,
            "max_steps": self.steps,
        }
        content = {**config.model_dump(), **changes}
        try:
            return TrainConfig.model_validate(content)
        except ValidationError as error:
            raise ConfigError(f"{self}: {first_problem(error, content)}") from error


@dataclass(frozen=True)
class Plan:
    """What is tried: every alpha and shape with `num_members`, for `steps`; `sizes` are the numbers that may be kept.

    `alphas` ascend; `probed` says how many more the stability of one adapter may add. All are scored after the steps
    of `rungs`, of which the last is `steps`.
    """

    alphas: tuple[float, ...]
    num_members: int
    sizes: tuple[int, ...]
    shapes: tuple[Shape, ...]
    steps: int
    probed: int = 0

    def with_critical(self, critical_alpha: float) -> "Plan":
        """The plan with the critical alpha and half of it, as far as orders between 0 and the largest are new."""
        alphas = list(self.alphas)
        for alpha in (critical_alpha, critical_alpha / 2)[: self.probed]:
            is_between = math.isfinite(alpha) and 0 < alpha < self.alphas[-1]
            if is_between and min(abs(alpha - known) for known in alphas) >= LEAST_DISTANCE:
                alphas.append(round(alpha, 2))
        return replace(self, alphas=tuple(sorted(alphas)), probed=0)

    @property
    def rungs(self) -> tuple[int, ...]:
        """The numbers of steps after which configurations are scored."""
        return tuple(math.ceil(self.steps * part / RUNGS) for part in range(1, RUNGS + 1))

    @property
    def branch_step(self) -> int:
        """The rung at which orders between 0 and the largest one begin."""
        return self.rungs[BRANCH_RUNG - 1]

    @property
    def single(self) -> list[Configuration]:
        """One adapter of each shape."""
        return [Configuration(1, 0.0, shape, self.steps) for shape in self.shapes]

    @property
    def ensembles(self) -> list[Configuration]:
        """Every alpha with every shape."""
        return [each for shape in self.shapes for part in self.rivals(shape) for each in part]

    def rivals(self, shape: Shape) -> tuple[list[Configuration], list[Configuration]]:
        """The ensembles of a shape: those that start anew, and those that branch off the one of the largest alpha."""
        ensembles = [
            Configuration(self.num_members, alpha, shape, self.steps)
            for alpha in self.alphas
            if self.num_members > 1
        ]
        anew = [each for each in ensembles if each.renyi_alpha in (0.0, self.alphas[-1])]
        return anew, [each for each in ensembles if each not in anew]

    def matched(self, shape: Shape) -> Configuration:
        """One adapter with as many adapter-steps as an ensemble has."""
        return Configuration(1, 0.0, shape, self.steps * self.num_members)

    @property
    def most_adapter_steps(self) -> int:
        """What all of it costs if nothing is dropped."""
        return self.steps * _cost_per_step(len(self.shapes), self.num_members, self.alphas, self.probed)


def plan_of(config: TrainConfig, wanted: Wanted, steps: int) -> Plan:
    """What is tried of a configuration that has so many steps by itself; fewer if the budget is not enough.

    Raises:
        ConfigError: the budget is too small.
    """
    wanted.check()
    alphas = tuple(sorted(set(wanted.alphas or DEFAULT_ALPHAS)))
    sizes = tuple(sorted({1, *(wanted.members or range(1, config.num_members + 1))}))
    shapes = tuple(
        Shape(rank, layers)
        for rank in dict.fromkeys(wanted.ranks or (config.lora_r,))
        for layers in dict.fromkeys(wanted.layers or (config.layers_to_transform,))
    )
    probed = 0 if wanted.alphas else PROBED
    per_step = _cost_per_step(len(shapes), sizes[-1], alphas, probed)
    if wanted.budget is not None:
        steps = min(steps, wanted.budget // per_step)
    if steps < FEWEST_STEPS:
        raise ConfigError(
            f"{steps} steps for each configuration are too few to tell them apart: expected at least {FEWEST_STEPS}, "
            f"which may cost {FEWEST_STEPS * per_step} adapter-steps; raise --budget, max_steps or num_epochs"
        )
    return Plan(alphas, sizes[-1], sizes, shapes, steps, probed)


def _cost_per_step(num_shapes: int, num_members: int, alphas: Sequence[float], probed: int) -> int:
    """Adapter-steps of the whole search for each optimizer step of one configuration, at most, rounded up."""
    if num_members == 1:
        return num_shapes
    anew = len({0.0, alphas[-1]} & set(alphas))
    branched = (len(alphas) - anew + probed) * (RUNGS - BRANCH_RUNG) / RUNGS
    return math.ceil(num_shapes * (1 + num_members * (anew + branched)) + num_members)
