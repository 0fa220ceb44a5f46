"""What is planned: an ensemble on a base, the load that it gets, and the machine.

In: numbers. Out: frozen dataclasses of numbers. Knows no files.
"""

import math
from dataclasses import dataclass, replace

from softspec.app.plan.base import Base
from softspec.app.plan.device import Device
from softspec.artefact.activation import shared_tokens
from softspec.engine.start.flags import engine_rank

MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""What `all-linear` is for the bases that are planned."""


@dataclass(frozen=True)
class Ensemble:
    """K adapters of one rank, on these linear layers of these decoder layers; `block_size` None: active everywhere."""

    members: int
    rank: int
    layers: tuple[int, ...]
    modules: tuple[str, ...] = MODULES
    block_size: int | None = None

    @property
    def engine_rank(self) -> int:
        """The rank of the engine's slots, for which vLLM has kernels."""
        return engine_rank(self.rank)


@dataclass(frozen=True)
class Load:
    """So many users at once; `context` is prompt and answer together, of which `output` tokens are the answer."""

    context: int
    output: int
    users: int

    @property
    def prompt(self) -> int:
        return self.context - self.output


@dataclass(frozen=True)
class Case:
    """One question to the arithmetic."""

    base: Base
    ensemble: Ensemble
    load: Load
    device: Device

    @property
    def alone(self) -> "Case":
        """The same with one adapter."""
        return replace(self, ensemble=replace(self.ensemble, members=1))

    @property
    def rows(self) -> int:
        """Rows of a step in which all users draw."""
        return self.load.users * self.ensemble.members

    @property
    def shared_prompt(self) -> int:
        """Tokens of a prompt that are computed and held once for all members."""
        return shared_tokens(self.ensemble.block_size, self.load.prompt)

    @property
    def lowest(self) -> int:
        """The lowest decoder layer with adapters."""
        return self.ensemble.layers[0]


def chosen_layers(wanted: tuple[int, ...] | str, count: int) -> tuple[int, ...]:
    """The decoder layers that `all`, `top_third` or their numbers are, as in training."""
    if wanted == "all":
        return tuple(range(count))
    if wanted == "top_third":
        return tuple(range(count - math.ceil(count / 3), count))
    return tuple(sorted({int(layer) for layer in wanted}))
