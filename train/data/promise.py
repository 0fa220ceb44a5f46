"""What the counts of answers by source promise, before the first step: whether routing could pay at all.

In: units of few distinct answers, and a configuration. Out: lines for the user; none where specialising may pay, or
where counts cannot tell. Knows no models.

Where an answer is one choice of a few, a source shows its habits in how often it chooses each. Members that learn
habits and nothing else are so small a problem that it is solved outright, under the objective as it is: K laws of
answers, fitted by EM to units of as many answers of one source as are routed together. What they come to is what a run
tends to with endless steps: nothing where one law for all is the best solution, little where units tell sources apart
badly.
"""

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from softspec.maths.mixture import uniform_log_weights
from softspec.maths.renyi import renyi_loss, responsibilities
from softspec.train.config import TrainConfig
from softspec.train.data.units import Unit

MOST_UNITS = 4000
"""Units that are looked at, evenly spread."""
MOST_ANSWERS = 20
MOST_TOKENS = 6
"""Tokens of an answer that is one choice, its end included: a longer one may be several, which share a source."""
LEAST_OF_EACH = 10
"""Units for each distinct answer, the mean: fewer, and an answer is no choice of a few."""
SIZES = (2, 4, 8, 16, 32)
DRAWN = 1000
"""Units of answers to which laws are fitted."""
ROUNDS = 60
ENOUGH = 0.4
"""The part that members must have of what they would with units of `MOST_ROWS`; a taste in groups of four has half."""
MOST_ROWS = 64
LEAST_GAIN = 0.02
"""Nats a row below which habits are next to nothing."""


@dataclass(frozen=True)
class Choices:
    """How often each of S sources gave each of C answers, (S, C), by weight.

    `agree` tells whether sources that were asked the same gave the same answer more often than their habits explain:
    they then contradict each other in habits, rather than in what they hold true. None where none were asked the same.
    """

    counts: Tensor
    agree: bool | None

    @property
    def have_habits(self) -> bool:
        """Whether sources differ in how often they give each answer, by four standard deviations of a G-test."""
        total = self.counts.sum()
        expected = self.counts.sum(1, keepdim=True) * self.counts.sum(0, keepdim=True) / total
        g = 2 * (torch.special.xlogy(self.counts, self.counts / expected)).sum().item()
        freedom = (self.counts.shape[0] - 1) * (self.counts.shape[1] - 1)
        return g > freedom + 4 * (2 * freedom) ** 0.5


def look_at_choices(units: Sequence[Unit]) -> Choices | None:
    """The answers of each source, or of each group where there are no sources.

    Returns:
        None where fewer than two sources are known, or where answers are no choice of a few.
    """
    answers: dict[tuple[int, ...], int] = {}
    counts: dict[tuple[str, int], float] = defaultdict(float)
    said: dict[tuple[int, ...], dict[str, int]] = defaultdict(dict)
    step = -(-len(units) // MOST_UNITS)
    looked_at = range(0, len(units), step)
    for number in looked_at:
        unit = units[number]
        first = unit.completions[0]
        source = first.source or unit.bundle
        if source is None:
            return None
        answer = answers.setdefault(first.completion_ids, len(answers))
        if len(answers) > MOST_ANSWERS or len(first.completion_ids) > MOST_TOKENS:
            return None
        counts[source, answer] += unit.weight
        said[first.prompt_ids][source] = answer
    sources = sorted({source for source, _ in counts})
    if len(sources) < 2 or len(answers) < 2 or len(looked_at) < LEAST_OF_EACH * len(answers):
        return None
    table = torch.tensor(
        [[counts[source, answer] for answer in range(len(answers))] for source in sources],
        dtype=torch.float64,
    )
    return Choices(table, _agree(said, table, sources))


def _agree(said: dict[tuple[int, ...], dict[str, int]], table: Tensor, sources: Sequence[str]) -> bool | None:
    """Whether two sources that were asked the same give one answer more often than by their habits."""
    laws = dict(zip(sources, table / table.sum(1, keepdim=True), strict=True))
    same, expected, pairs = 0, 0.0, 0
    for answers in said.values():
        (one, given), *others = answers.items()
        for other, answer in others:
            pairs += 1
            same += given == answer
            expected += float(laws[one] @ laws[other])
    return same > expected if pairs else None


def gain_of_members(choices: Choices, num_members: int, renyi_alpha: float, rows: int) -> float:
    """How much better the mixture of members is than one adapter, nats per row, if all there is are habits.

    Members are those with the least loss on units of so many rows of one source.
    """
    generator = torch.Generator().manual_seed(0)
    units = _drawn(choices.counts, rows, generator)
    law = units.sum(0) / units.sum()
    alone = -(units @ law.clamp_min(1e-12).log()).mean().item()
    _, mixture = min(_fitted(units, law, renyi_alpha, laws) for laws in _starts(choices.counts, num_members))
    return (alone - mixture) / rows


def _drawn(counts: Tensor, rows: int, generator: torch.Generator) -> Tensor:
    """Units of so many answers of one source, as counts of answers, (U, C)."""
    sources = torch.multinomial(counts.sum(1), DRAWN, replacement=True, generator=generator)
    answers = torch.multinomial(counts[sources], rows, replacement=True, generator=generator)
    return torch.nn.functional.one_hot(answers, counts.shape[1]).sum(1).double()


def _starts(counts: Tensor, num_members: int) -> list[Tensor]:
    """Laws to begin with, (K, C) each: those of some sources."""
    rng = random.Random(0)
    laws = counts / counts.sum(1, keepdim=True)
    picks = [[rng.randrange(len(laws)) for _ in range(num_members)] for _ in range(4)]
    picks.append([number % len(laws) for number in range(num_members)])
    return [laws[pick] for pick in picks]


def _fitted(units: Tensor, law: Tensor, renyi_alpha: float, laws: Tensor) -> tuple[float, float]:
    """The mean loss of a unit after some rounds of EM from these laws (K, C), and its NLL under their mixture, nats."""
    log_weights = uniform_log_weights(len(laws))

    def loglik() -> Tensor:
        return (0.99 * laws + 0.01 * law).clamp_min(1e-12).log() @ units.T

    for _ in range(ROUNDS):
        laws = responsibilities(loglik(), log_weights, renyi_alpha) @ units + 1e-9
        laws = laws / laws.sum(1, keepdim=True)
    found = loglik()
    loss, mixture = (renyi_loss(found, log_weights, order).mean().item() for order in (renyi_alpha, 1.0))
    return loss, mixture


def doubts(
    config: TrainConfig, units: Sequence[Unit], groups_per_step: float | None, num_groups: int | None
) -> list[str]:
    """Why members cannot specialise on these data with these settings, a line each; none where they may.

    Args:
        groups_per_step: how many groups a step has, the mean; None where none are routed.
        num_groups: how many there are in the data.
    """
    if config.num_members == 1 or config.renyi_alpha == 0 or config.granularity == "token":
        return []
    lines = []
    if num_groups == 1:
        return ["all rows have one 'group': there is nothing to route, and members will stay alike"]
    if groups_per_step is not None and groups_per_step < config.num_members:
        needed = -(-config.num_members * config.group_rows // config.micro_batch_size)
        lines.append(
            f"a step has about {groups_per_step:.2g} groups for {config.num_members} members, which moves all members "
            f"the same way; leave gradient_accumulation_steps out, or set it to {needed}"
        )
    choices = look_at_choices(units)
    return lines + (_about_price(config, choices) if choices else [])


def _about_price(config: TrainConfig, choices: Choices) -> list[str]:
    """A line if what is routed as one is too small to tell sources apart."""
    members, alpha = config.num_members, config.renyi_alpha
    known = f"rows have one of {choices.counts.shape[1]} answers"

    def gain(rows: int) -> float:
        return gain_of_members(choices, members, alpha, rows)

    def fewest(least: int, goal: float) -> int:
        return next((size for size in SIZES if size > least and gain(size) >= goal), MOST_ROWS)

    most = gain(MOST_ROWS) if choices.have_habits else 0.0
    if config.granularity != "group":
        rows = fewest(1, ENOUGH * most) if most > LEAST_GAIN else config.group_rows
        return [
            f"{known} and are routed one by one, and one choice never pays for a member of its own: give rows of one "
            f"source a 'group' and set granularity: group and group_rows: {rows}, or members will not follow sources"
        ]
    if not choices.have_habits or choices.agree is False:
        return []  # what contradicts, if anything, is not how often each answer is given
    if most <= LEAST_GAIN:
        return [
            f"{known}, and how often a source gives each is worth {most:.2g} nats a row at most: unless sources differ "
            "in what they say of what, members will stay alike; softspec diagnose measures it"
        ]
    now = gain(config.group_rows)
    if now >= ENOUGH * most:
        return []
    rows = fewest(config.group_rows, ENOUGH * most)
    return [
        f"{known}, and of the {most:.2g} nats a row that sources' habits are worth {members} members at renyi_alpha "
        f"{alpha:g} can have {max(now, 0):.2g} with group_rows {config.group_rows}: set group_rows: {rows}"
    ]
