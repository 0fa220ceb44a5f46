"""The schedule: which learning rate, which alpha and which examples an optimizer step has.

In: a `TrainConfig`, a step number, and of the data their number and, where these are routed, their bundles.
Out: numbers and indices. Pure functions of the step, so a resumed run needs no state to go on with the same ones.
"""

import math
from collections import deque
from collections.abc import Callable, Sequence

import torch

from softspec.train.config import TrainConfig
from softspec.train.data.units import in_batches


def total_steps(config: TrainConfig, steps_per_epoch: int) -> int:
    """How many optimizer steps the whole run has."""
    if config.max_steps is not None:
        return config.max_steps
    return math.ceil(config.num_epochs * steps_per_epoch)


def learning_rate(config: TrainConfig, step: int, total: int) -> float:
    """The learning rate of a step: a linear warm-up from above zero, then the configured decay to just above zero."""
    warmup = math.ceil(config.warmup_ratio * total)
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    done = (step - warmup) / max(1, total - warmup)
    factor = {"constant": 1.0, "linear": 1 - done, "cosine": 0.5 + 0.5 * math.cos(math.pi * done)}
    return config.learning_rate * factor[config.lr_scheduler_type]


def renyi_alpha(config: TrainConfig, step: int, total: int) -> float:
    """The order of a step: linear from 0 to the configured one over the first `alpha_warmup_ratio` of the run."""
    warmup = math.ceil(config.alpha_warmup_ratio * total)
    return config.renyi_alpha * (step / warmup if step < warmup else 1)


FREE_FROM = 0.8
"""The share of a run, with schedule auto, after which nothing bounds responsibilities."""


def reach_nats(config: TrainConfig, step: int, total: int) -> float:
    """How far responsibilities may be from the mixture weights in a step, as KL(r || w); infinite without a bound.

    With uniform weights, the least number of members that share a bundle, exp H(r), falls from K towards 1 in a
    straight line. Members begin by learning what all have to learn, such as the form of answers: whichever is ahead in
    that would otherwise take every bundle, as its lead there is far larger than what any source is worth.
    """
    done = (step + 1) / (FREE_FROM * total)
    if config.schedule == "plain" or done >= 1:
        return math.inf
    sharing = config.num_members - done * (config.num_members - 1)
    return math.log(config.num_members / sharing)


MOST_WAITING = 64
"""Pieces that may wait for another step, so that rare bundles are not used up first."""


class ExampleOrder:
    """The examples of every step: each epoch has a permutation of its own, the same for all members.

    With bundles (the numbers of the examples in each) it deals pieces of up to `group_rows` examples of one bundle, for
    examples that are routed together must meet in a step; and pieces of different bundles to a step as long as there
    are some, for pieces of one bundle do not compete. A step that a piece would not fit into gets a part of it.
    """

    def __init__(
        self, config: TrainConfig, num_examples: int, bundles: Sequence[Sequence[int]] | None = None
    ) -> None:
        self.config = config
        self.num_examples = num_examples
        self._bundles = bundles
        self._epoch = -1
        self._order: list[int] = []

    @property
    def steps_per_epoch(self) -> int:
        """How many optimizer steps see every example once; the last one may be smaller."""
        return math.ceil(self.num_examples / self.config.examples_per_step)

    @property
    def examples_per_piece(self) -> float:
        """How many examples are dealt together, the mean; 1 without bundles."""
        if self._bundles is None:
            return 1.0
        pieces = sum(math.ceil(len(bundle) / self.config.group_rows) for bundle in self._bundles)
        return self.num_examples / pieces

    def indices(self, step: int) -> list[int]:
        """The numbers of the examples of one step."""
        epoch, position = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, self._permutation(epoch)
        size = self.config.examples_per_step
        return self._order[position * size : (position + 1) * size]

    def _permutation(self, epoch: int) -> list[int]:
        generator = torch.Generator().manual_seed(self.config.seed * 1_000_003 + epoch)

        def shuffled(count: int) -> list[int]:
            return torch.randperm(count, generator=generator).tolist()

        if self._bundles is None:
            return shuffled(self.num_examples)
        pieces: list[list[Sequence[int]]] = []
        for bundle in self._bundles:
            mixed = [bundle[index] for index in shuffled(len(bundle))]
            pieces.append(list(in_batches(mixed, self.config.group_rows)))
        return _apart(pieces, self.config.examples_per_step, shuffled)


def _apart(
    pieces: Sequence[list[Sequence[int]]], size: int, shuffled: Callable[[int], list[int]]
) -> list[int]:
    """The examples of all pieces, given bundle by bundle, in an order in which steps of this size mix bundles.

    Pieces come in a random order; one whose bundle the step has already waits for the next, as long as not too many do.
    """
    left = [list(each) for each in pieces]
    drawn = [bundle for bundle, each in enumerate(pieces) for _ in each]
    waiting = deque(drawn[place] for place in shuffled(len(drawn)))
    order: list[int] = []
    skipped: list[int] = []
    here: set[int] = set()
    while waiting:
        bundle = waiting.popleft()
        if bundle in here:
            skipped.append(bundle)
        else:
            step = len(order) // size
            order += left[bundle].pop()
            here = here | {bundle} if len(order) // size == step else {bundle} if len(order) % size else set()
        if not waiting or len(skipped) == MOST_WAITING or not here:
            here = set() if skipped else here
            waiting.extendleft(reversed(skipped))
            skipped = []
    return order
