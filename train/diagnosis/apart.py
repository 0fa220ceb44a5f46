"""A short run of one adapter for each source beside one for all of them: what members of their own would gain.

In: a configuration, and units whose sources are known. Out: a `Training` whose members are these adapters, and how
likely they find rows that none of them learnt. Nothing is routed: a source's adapter learns its own rows.

All adapters start from one A, take the same steps and see the same rows, so that they differ by their sources alone.
"""

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from softspec.errors import DivergedError
from softspec.maths.renyi import surrogate_loss
from softspec.train.config import TrainConfig
from softspec.train.data.units import Unit, in_batches
from softspec.train.diagnosis.price import Judged
from softspec.train.loop.schedule import learning_rate
from softspec.train.loop.state import Training
from softspec.train.members.pairs import Pairs
from softspec.train.processes import is_main_process
from softspec.train.run import check_names, prepare

MOST_SOURCES = 8
"""The most frequent ones; each costs memory for an adapter, and no time."""
HELD_BACK = 0.25
"""The share of a source's rows to judge by, where no held-out rows have it."""


@dataclass(frozen=True)
class Sources:
    """Rows of the sources that are looked at: numbers of them by source, to learn and to judge by.

    `left_out` counts further sources.
    """

    names: tuple[str, ...]
    learnt: list[list[Unit]]
    judged: list[list[Unit]]
    left_out: int


def source_of(unit: Unit) -> str | None:
    """Where a unit comes from: its source, or else its group."""
    return unit.completions[0].source or unit.bundle


def find_sources(examples: Sequence[Unit], held_out: Sequence[Unit], rows: int, seed: int) -> Sources | None:
    """The most frequent sources, with at most so many rows to judge by together; None where there are not two."""
    counts = Counter(name for unit in examples if (name := source_of(unit)) is not None)
    names = tuple(name for name, count in counts.most_common(MOST_SOURCES) if count >= 2)
    if len(names) < 2:
        return None
    rng = random.Random(seed)
    learnt, judged = ({name: list[Unit]() for name in names} for _ in range(2))
    for side, units in ((learnt, examples), (judged, held_out)):
        for unit in units:
            if (name := source_of(unit)) in side:
                side[str(name)].append(unit)
    for name in names:
        rng.shuffle(learnt[name])
        rng.shuffle(judged[name])
        if not judged[name]:
            count = max(1, round(HELD_BACK * len(learnt[name])))
            judged[name], learnt[name] = learnt[name][:count], learnt[name][count:]
    each = max(1, rows // len(names))
    return Sources(
        names, list(learnt.values()), [units[:each] for units in judged.values()], len(counts) - len(names)
    )


def cost_of(sources: Sources, config: TrainConfig, steps: int) -> str:
    """What the short run comes to, in one line."""
    of_each, judged = rows_of_each(config, len(sources.names)), sum(map(len, sources.judged))
    more = (
        f" (of {len(sources.names) + sources.left_out} sources the most frequent)" if sources.left_out else ""
    )
    return (
        f"adapters of {len(sources.names)} sources{more}: {steps} steps of {of_each * len(sources.names)} rows, each "
        f"under 2 adapters; {judged} rows are judged under {len(sources.names) + 1}"
    )


def rows_of_each(config: TrainConfig, num_sources: int) -> int:
    """How many rows of each source a step has: together about as many as a step of the run, and at least one."""
    return max(1, round(config.examples_per_step / num_sources))


def train_apart(config: TrainConfig, sources: Sources, steps: int) -> tuple[Training, Judged]:
    """Train the adapters, the last of which is the one for all, and judge rows by them.

    Raises:
        ConfigError: names that do not fit the base.
        TrainingError: the loss is no longer finite.
    """
    count = len(sources.names)
    short = config.model_copy(
        update={
            "num_members": count + 1,
            "granularity": "sequence",
            "max_steps": steps,
            "prior_strength": 0.0,
        }
    )
    learnt = [unit for units in sources.learnt for unit in units]
    judged = [unit for units in sources.judged for unit in units]
    training = prepare(short, check_names(short), learnt, judged)
    for member in range(1, count + 1):
        training.members.load_adapter(member, training.members.adapter_state(0))
    starts = [sum(map(len, sources.learnt[:number])) for number in range(count)]
    dealt = [
        _dealt(start, len(units), config.seed) for start, units in zip(starts, sources.learnt, strict=True)
    ]
    of_each = rows_of_each(config, count)
    bar = tqdm(range(steps), desc="adapters of sources", unit="step", disable=not is_main_process())
    for step in bar:
        rows = [(source, next(numbers)) for source, numbers in enumerate(dealt) for _ in range(of_each)]
        _step(training, rows, learning_rate(short, step, steps))
    return training, judge(training, sources)


def _dealt(start: int, count: int, seed: int) -> Iterator[int]:
    """The numbers of a source's rows for ever, all of them before any comes again."""
    rng = random.Random(seed + start)
    while True:
        yield from rng.sample(range(start, start + count), count)


def _step(training: Training, rows: Sequence[tuple[int, int]], rate: float) -> None:
    """Move every source's adapter by its own rows, given as (source, number), and the last one by all of them."""
    config, device = training.config, training.members.model.device
    last = config.num_members - 1
    of_source = Counter(source for source, _ in rows)
    training.optimizer.zero_grad()
    for part in in_batches(rows, config.micro_batch_size):
        units = [training.examples[number] for _, number in part]
        numbers = torch.arange(len(part), device=device)
        own = torch.tensor([source for source, _ in part], device=device)
        pairs = Pairs(numbers.repeat(2), torch.cat([own, torch.full_like(own, last)]), len(part))
        weights = torch.tensor([unit.weight for unit in units], dtype=torch.float64, device=device)
        sizes = torch.tensor([of_source[source] for source, _ in part], device=device)
        shares = torch.cat([weights / sizes, weights / len(rows)])
        loglik = training.objective.batch(training.members, units).loglik(pairs)
        surrogate_loss(loglik, shares).sum().backward()
    norms = training.members.clip_gradients(config.max_grad_norm)
    if not norms.isfinite().all():
        raise DivergedError("the adapters of sources diverged: lower learning_rate")
    training.optimizer.step(rate)


@torch.no_grad()
def judge(training: Training, sources: Sources) -> Judged:
    """All rows to judge by, which are the training's held-out ones, under every adapter."""
    units, size = training.held_out, training.config.micro_batch_size
    bar = tqdm(range(0, len(units), size), desc="judging", unit="batch", disable=not is_main_process())
    tables = [
        training.objective.batch(training.members, units[start : start + size]).table().loglik.cpu()
        for start in bar
    ]
    *apart, together = torch.cat(tables, 1)
    counts = torch.tensor([len(rows) for rows in sources.judged])
    return Judged(
        sources.names,
        together,
        torch.stack(apart),
        torch.arange(len(counts)).repeat_interleave(counts),
        torch.tensor([unit.weight for unit in units], dtype=torch.float64),
    )


def directions(training: Training) -> list[Tensor]:
    """From the adapter for all to each source's own, (P,): the ways in which members could part."""
    weights = [weight.detach() for weight in training.members.parameters()]
    return [
        torch.cat([(weight[source] - weight[-1]).flatten() for weight in weights])
        for source in range(training.config.num_members - 1)
    ]
