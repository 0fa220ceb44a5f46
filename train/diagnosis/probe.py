"""The critical alpha of a run: where its first member would part into several, measured around where it is.

In: a `Training` whose member has learnt (one adapter does), and units. Out: an upper bound of the alpha above which
members part, with its interval. A diagnostic and no gate: the direction is the best of those that were tried.
"""

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from tqdm import tqdm

from softspec.errors import ConfigError
from softspec.maths.stability import CriticalAlpha, Line, leading_direction, lowest_curvature
from softspec.train.config import TrainConfig
from softspec.train.data.units import Unit, in_batches
from softspec.train.diagnosis.replicas import Replicas, replicas_of, step_for
from softspec.train.loop.state import Training
from softspec.train.processes import is_main_process

ROWS = 128
GRADIENTS = 32
"""Of each half, the most whose span is searched."""
PUSHES = 6
"""Iterations of Lanczos, each with two replicas forward and backward."""
NUMBERS = 2**27
"""The most numbers of gradients in memory, 512 MB in float32."""

Key = tuple[int, str]
"""The half of the rows, and a group or a source."""


@dataclass(frozen=True)
class Probe:
    """What rows say along directions that were not fitted to them, and which rows belong to one unit.

    `keys` name the half and the group of each row, or its source: rows with one key can be routed together.
    """

    line: Line
    keys: tuple[Key | None, ...]
    direction: Tensor
    """One of the two directions, (P,), which changes a unit by about 0.1 nats."""

    def critical_alpha(self, group_rows: int, seed: int = 0) -> CriticalAlpha:
        """The critical alpha if so many rows with one key were routed together; fewer where there are not so many."""
        return self.line.of_units(_numbered(self.keys, group_rows)).critical_alpha(seed)


def critical_alpha(
    training: Training,
    units: Sequence[Unit] = (),
    *,
    member: int = 0,
    rows: int = ROWS,
    directions: Sequence[Tensor] = (),
    seed: int = 0,
) -> CriticalAlpha:
    """The alpha above which members part from this one, 1 / phi with its 95 % interval; an upper bound.

    Args:
        training: a run whose member is near where one adapter alone would end.
        units: to measure on, held out if possible; by default the run's own, held-out ones first.
        rows: how many of them.
        directions: to be tried beside the one that gradients give, (P,) each, found on other rows.
    Raises:
        ConfigError: there are fewer than four units.
    """
    found = probe(training, units, member=member, rows=rows, directions=directions, seed=seed)
    return found.critical_alpha(rows_together(training.config), seed)


def probe(
    training: Training,
    units: Sequence[Unit] = (),
    *,
    member: int = 0,
    rows: int = ROWS,
    directions: Sequence[Tensor] = (),
    seed: int = 0,
) -> Probe:
    """Find a direction on either half of some rows, and ask the other half about it. Arguments as `critical_alpha`."""
    chosen = some_of(units or training.held_out or training.examples, rows, seed)
    together = rows_together(training.config)
    pieces = _pieces(chosen, together)
    if len(pieces) < 4:
        raise ConfigError(
            f"the critical alpha needs at least 4 units, found {len(pieces)}: give it more rows"
        )
    random.Random(seed).shuffle(pieces)
    halves = pieces[::2], pieces[1::2]
    lines: list[Line] = []
    keys: list[Key | None] = []
    with replicas_of(training, member, seed) as replicas:
        for fold, (fit, judge) in enumerate((halves, halves[::-1])):
            direction = _direction(replicas, fit, directions)
            asked = [unit for piece in judge for unit in piece]
            step = step_for(replicas, direction, asked[: training.config.micro_batch_size])
            # Both halves in one unit of length.
            lines.append(_weighted(replicas.along(step * direction, asked, 1.0), asked, training.config))
            if training.config.granularity == "token":
                keys += [None] * len(lines[-1].scores)
            else:
                keys += [_in_half(fold, unit) for unit in asked]
    return Probe(lines[0].joined(lines[1]), tuple(keys), step * direction)


def lowest_force(training: Training, member: int, units: Sequence[Unit], direction: Tensor) -> float:
    """The smallest eigenvalue of V - alpha J that a few pushes of two replicas find, per square of a weight.

    Args:
        direction: where to begin, (P,), and how far the replicas stand from their middle.
    """
    with replicas_of(training, member, count=2) as replicas:
        length = direction.norm().item()

        def force(way: Tensor) -> Tensor:
            return replicas.force(units, training.config.renyi_alpha, way, length)

        return lowest_curvature(force, direction, PUSHES)[0]


def units_of(units: Sequence[Unit], together: int) -> Tensor:
    """The number of each row's unit, from 0, if so many rows with one group or source are routed together; (N,)."""
    return _numbered([_in_half(0, unit) for unit in units], together)


def rows_together(config: TrainConfig) -> int:
    """How many rows of one group are routed as one."""
    return config.group_rows if config.granularity == "group" else 1


def _direction(replicas: Replicas, pieces: Sequence[Sequence[Unit]], others: Sequence[Tensor]) -> Tensor:
    """The best direction for these units: that of their gradients, or one of the others."""
    count = min(len(pieces), GRADIENTS, max(2, NUMBERS // (2 * len(replicas.point))))
    bar = tqdm(pieces[:count], desc="gradients", unit="unit", delay=2, disable=not is_main_process())
    pairs = [replicas.gradients(piece) for piece in bar]
    scores, own = (torch.stack(side).cpu() for side in zip(*pairs, strict=True))
    best = leading_direction(scores, own).to(replicas.point)
    candidates = [best, *(other.to(best) for other in others)]
    if len(candidates) == 1:
        return best
    asked = [unit for piece in pieces[:count] for unit in piece]
    return max(candidates, key=lambda each: _phi(replicas, each, asked, len(pieces[0])))


def _phi(replicas: Replicas, direction: Tensor, units: Sequence[Unit], together: int) -> float:
    step = step_for(replicas, direction, units[: replicas.training.config.micro_batch_size])
    line = _weighted(replicas.along(direction, units, step), units, replicas.training.config)
    if replicas.training.config.granularity != "token":
        line = line.of_units(units_of(units, together))
    return line.phi().item()


def _weighted(line: Line, units: Sequence[Unit], config: TrainConfig) -> Line:
    """The line whose units weigh as in training: their losses do, or in a group their log-likelihoods."""
    if config.granularity == "token":
        return line
    weights = torch.tensor([unit.weight for unit in units], dtype=torch.float64)
    in_scores = weights if config.granularity == "group" else weights.sqrt()
    return replace(line, scores=in_scores * line.scores, curvatures=weights * line.curvatures)


def some_of(units: Sequence[Unit], rows: int, seed: int) -> list[Unit]:
    """At most so many units, drawn without replacement."""
    numbers = random.Random(seed).sample(range(len(units)), min(rows, len(units)))
    return [units[number] for number in numbers]


def key_of(unit: Unit) -> str | None:
    """What a row can be routed by: its group, or else its source."""
    return unit.bundle if unit.bundle is not None else unit.completions[0].source


def _in_half(half: int, unit: Unit) -> Key | None:
    key = key_of(unit)
    return None if key is None else (half, key)


def _pieces(units: Sequence[Unit], together: int) -> list[Sequence[Unit]]:
    """What is routed as one: up to so many units with one key."""
    if together == 1:
        return [[unit] for unit in units]
    by_key: dict[str | None, list[Unit]] = {}
    for unit in units:
        by_key.setdefault(key_of(unit), []).append(unit)
    return [piece for members in by_key.values() for piece in in_batches(members, together)]


def _numbered(keys: Sequence[Key | None], together: int) -> Tensor:
    """The number of each row's unit, from 0: up to so many rows with one key make one; rows without key are alone."""
    seen: Counter[Key] = Counter()
    numbers: dict[tuple[Key | None, int], int] = {}
    found = []
    for place, key in enumerate(keys):
        name = (key, place if key is None else seen[key] // together)
        found.append(numbers.setdefault(name, len(numbers)))
        if key is not None:
            seen[key] += 1
    return torch.tensor(found)
