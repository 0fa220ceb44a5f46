"""What n answers of a source tell of its next one: the price of not knowing whom one talks to.

In: columns with answers of known sources. Out: how well the next answers are predicted after 0, 1, 4, 16 others of the
same source, from the posterior over members; `Statistic`s over answers.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from softspec.evaluation.bootstrap import FEWEST_UNITS, Resampling, Statistic
from softspec.evaluation.columns import Columns

AFTER = (0, 1, 4, 16)
ORDERS = 20
"""Random orders of a source's answers, over which the scores of each answer are averaged."""


@dataclass(frozen=True)
class NextAnswers:
    """-log P of each of A answers, after n others of its source, nats: (A, len(AFTER)), NaN where there are no n.

    `row`, `source` (A,) are numbers.
    """

    nll: Tensor
    row: Tensor
    source: Tensor

    def resampling(self, rows: Resampling) -> Resampling:
        """Sources where there are at least `FEWEST_UNITS`; else what rows are resampled by, for these sources."""
        weight = rows.weight[self.row]
        sources = self.source.unique(return_inverse=True)[1]
        if int(sources.max()) + 1 >= FEWEST_UNITS:
            return replace(rows, unit="source", unit_of=sources, weight=weight)
        return replace(rows, unit_of=rows.unit_of[self.row], weight=weight)

    def statistics(self) -> dict[str, Statistic]:
        """The mean score after n answers, and by how much it is better than after none for the same answers."""
        found = {}
        for place, after in enumerate(AFTER):
            rows = (~self.nll[:, place].isnan()).nonzero()[:, 0]
            values, gains = self.nll[rows, place], (self.nll[:, 0] - self.nll[:, place])[rows]
            about = (
                f"mean -log P of an answer, given {after} others of its source, nats; {ORDERS} random orders"
            )
            reason = f"no source has {after} answers to other items"
            found[f"next_nll_{after}"] = Statistic(about, _mean(values, rows), len(rows), reason)
            if after:
                about = f"nats by which {after} answers of its source make an answer better predicted, paired"
                found[f"next_gain_{after}"] = Statistic(about, _mean(gains, rows), len(rows), reason)
        return found


def next_answers(columns: Columns, seed: int = 0) -> NextAnswers | None:
    """Predict every answer from others of its source, to other items; None without sources, or with one member.

    Evidence is what members say among the choices: that an answer is one of them tells nothing.
    """
    answers = columns.answers
    if len(columns.log_weights) == 1 or not answers.sources:
        return None
    generator = torch.Generator().manual_seed(seed)
    parts = [
        _of_source(columns, (answers.source == code).nonzero()[:, 0], generator)
        for code in range(len(answers.sources))
    ]
    return NextAnswers(
        nll=torch.cat([nll for nll, _ in parts]),
        row=torch.cat([row for _, row in parts]),
        source=torch.cat([torch.full((len(row),), code) for code, (_, row) in enumerate(parts)]),
    )


def _of_source(columns: Columns, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Scores (A, len(AFTER)) and rows (A,) of one source's answers; labels (E,) are its places."""
    answers = columns.answers
    numbers, owner = answers.answer[labels].unique(return_inverse=True)
    share, forecast = answers.share[labels], answers.forecast[labels]
    size = len(numbers)
    row = torch.zeros(size, dtype=torch.long).scatter_(0, owner, answers.row[labels])
    evidence = forecast.new_zeros(size, forecast.shape[1]).index_add_(0, owner, share[:, None] * forecast)
    item = columns.item[row].unique(return_inverse=True)[1]
    largest = int(item.bincount().max())
    nll = torch.full((size, len(AFTER)), torch.nan, dtype=torch.float64)
    possible = [place for place, after in enumerate(AFTER) if after + largest <= size]
    nll[:, possible] = 0
    prior = columns.log_weights + answers.mass[labels]
    for _ in range(ORDERS):
        before = _evidence_before(evidence, item, [AFTER[place] for place in possible], generator)
        for place, known in zip(possible, before, strict=True):
            joint = prior + known[owner]
            log_prob = (joint + forecast).logsumexp(-1) - joint.logsumexp(-1)
            nll[:, place].index_add_(0, owner, -share * log_prob / ORDERS)
    return nll, row


def _evidence_before(
    evidence: Tensor, item: Tensor, counts: list[int], generator: torch.Generator
) -> list[Tensor]:
    """What the n answers before each tell of the members, (A, K) for each n, in a random order that is a circle.

    Answers to one item stand together, and none of them counts for another.
    """
    size = len(evidence)
    key = torch.rand(int(item.max()) + 1, generator=generator, dtype=torch.float64)[item]
    order = key.argsort(stable=True)
    place = torch.empty_like(order)
    place[order] = torch.arange(size)
    begin = torch.full((int(item.max()) + 1,), size).scatter_reduce(0, item, place, "amin")[item]
    twice = torch.cat([evidence[order], evidence[order]])
    sums = torch.cat([twice.new_zeros(1, twice.shape[1]), twice.cumsum(0)])
    return [sums[size + begin] - sums[size + begin - count] for count in counts]


def _mean(values: Tensor, rows: Tensor) -> Callable[[Tensor], Tensor]:
    def evaluate(weights: Tensor) -> Tensor:
        counts = weights[..., rows]
        return counts @ values / counts.sum(-1)

    return evaluate
