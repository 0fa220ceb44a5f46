"""Who is behind what: the members' responsibilities for answers that were given, and how they follow sources.

In: columns with answers. Out: `Statistic`s by name, a matrix of members by source, a permutation test. Responsibilities
are at alpha = 1, the posterior over members given the whole answer, from the prior weights.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.special import entr, xlogy

from softspec.evaluation.bootstrap import Statistic
from softspec.evaluation.columns import Answers, Columns

PERMUTATIONS = 200
MOST_PERPLEXITY = 0.95
"""Share of K above which rounding decides which member leads, so nothing is said of leaders."""
NOBODY_LEADS = "responsibilities are nearly uniform: rounding would decide which member leads"


def member_statistics(columns: Columns, seed: int = 0) -> dict[str, Statistic]:
    """Metrics of responsibilities; empty with one member, or where nobody answered."""
    answers = columns.answers
    if len(columns.log_weights) == 1 or not len(answers.row):
        return {}
    shares = responsibilities(columns)
    number = int(answers.answer.max()) + 1
    count = _counting(answers)

    def load(weights: Tensor) -> Tensor:
        counts = count(weights)
        return counts @ shares / counts.sum(-1, keepdim=True)

    entropy = entr(shares).sum(-1)

    def routing(weights: Tensor) -> Tensor:
        counts = count(weights)
        return counts @ entropy / counts.sum(-1)

    spread = {
        "effective_members": (
            "exp of the entropy of the members' mean responsibilities, 1 to K",
            _exp_entropy(load),
        ),
        "routing_perplexity": ("exp of the mean entropy of responsibilities: K none, 1 hard", _exp(routing)),
        "specialisation": (
            "I(member; answer), entropy of the load minus mean entropy of responsibilities, nats",
            lambda weights: entr(load(weights)).sum(-1) - routing(weights),
        ),
    }
    found = {name: Statistic(about, evaluate, number) for name, (about, evaluate) in spread.items()}
    return {**found, **_source_statistics(columns, shares, number, seed)}


def responsibilities(columns: Columns) -> Tensor:
    """Each member's share of each given label, (E, K)."""
    return (columns.log_weights + columns.answers.loglik).softmax(-1)


@dataclass(frozen=True)
class Matrix:
    """Mean responsibilities (S, K) of each source, and over all (K,); `answers` (S,) were counted."""

    sources: tuple[str, ...]
    answers: tuple[int, ...]
    rows: list[list[float]]
    load: list[float]


def responsibility_matrix(columns: Columns) -> Matrix | None:
    """Who answers for which source; None without known sources."""
    answers = columns.answers
    if len(columns.log_weights) == 1 or not answers.sources:
        return None
    shares, counts = responsibilities(columns), _counting(answers)(columns.weight)
    known = answers.source >= 0
    joint = _joint(shares[known], answers.source[known], len(answers.sources), counts[known])
    numbers = [
        int(answers.answer[answers.source == code].unique().numel()) for code in range(len(answers.sources))
    ]
    load = counts @ shares / counts.sum()
    return Matrix(
        answers.sources, tuple(numbers), (joint / joint.sum(1, keepdim=True)).tolist(), load.tolist()
    )


def permutation_test(
    statistic: Callable[[Tensor], Tensor], columns: Columns, seed: int = 0, permutations: int = PERMUTATIONS
) -> tuple[Tensor, str]:
    """A statistic of the labels' sources (E,), where sources tell nothing.

    Sources are shuffled among the answers to one item where several sources answered some; among whole groups where
    each is of one source; else among all answers.

    Returns:
        its values (P,), and what was shuffled.
    """
    answers = columns.answers
    first = torch.ones_like(answers.answer, dtype=torch.bool)
    first[1:] = answers.answer[1:] != answers.answer[:-1]
    position = first.cumsum(0) - 1
    rows, sources = answers.row[first], answers.source[first]
    blocks, units, what = _exchangeable(columns.item[rows], columns.group[rows], sources)
    generator = torch.Generator().manual_seed(seed)
    unit_source = torch.zeros(int(units.max()) + 1, dtype=torch.long).scatter_(0, units, sources)
    unit_block = torch.zeros_like(unit_source).scatter_(0, units, blocks)
    order, values = unit_block.argsort(stable=True), []
    for _ in range(permutations):
        noise = torch.rand(len(unit_block), generator=generator, dtype=torch.float64)
        mixed = torch.empty_like(unit_source)
        mixed[order] = unit_source[(unit_block + noise).argsort()]
        values.append(statistic(mixed[units][position]))
    return torch.stack(values), what


def _exchangeable(item: Tensor, group: Tensor, source: Tensor) -> tuple[Tensor, Tensor, str]:
    """Within which blocks which units may change their sources, as numbers (A,) each."""
    alone = torch.arange(len(source))
    if _most_sources(item, source) > 1:
        return item, alone, "answers to the same item"
    units = torch.where(group >= 0, group, alone + int(group.max()) + 1).unique(return_inverse=True)[1]
    num_units, num_sources = int(units.max()) + 1, len(source.unique())
    if _most_sources(units, source) == 1 and num_sources < num_units < len(source):
        return torch.zeros_like(source), units, "groups"
    return torch.zeros_like(source), alone, "answers"


def _most_sources(blocks: Tensor, source: Tensor) -> int:
    """The most different sources that one block has."""
    pairs = torch.stack([blocks, source], 1).unique(dim=0)
    return int(pairs[:, 0].unique(return_counts=True)[1].max())


def _source_statistics(columns: Columns, shares: Tensor, number: int, seed: int) -> dict[str, Statistic]:
    answers = columns.answers
    if not answers.sources or bool((answers.source < 0).any()):
        return {}
    num_sources, count = len(answers.sources), _counting(answers)
    own = count(columns.weight)
    perplexity = float(((own @ entr(shares).sum(-1)) / own.sum()).exp())
    about = "I(member; source) of mean responsibilities, nats; biased upwards by about (S-1)(K-1)/2n"
    if num_sources == 1:
        only = Statistic(about, lambda weights: weights.sum(-1) * torch.nan, number, "one source only")
        return {"soft_source_mi": only}
    null, shuffled = permutation_test(
        lambda source: _information(_joint(shares, source, num_sources, own)), columns, seed
    )
    value = _information(_joint(shares, answers.source, num_sources, own))
    test = {
        "p_value": (1 + int((null >= value - 1e-12).sum())) / (1 + len(null)),
        "null_mean": null.mean().item(),
        "permutations": len(null),
        "shuffled": shuffled,
    }

    def soft(weights: Tensor) -> Tensor:
        return _information(_joint(shares, answers.source, num_sources, count(weights)))

    leading = torch.nn.functional.one_hot(shares.argmax(-1), shares.shape[-1]).double()
    is_led = perplexity <= MOST_PERPLEXITY * shares.shape[-1]

    def hard(score: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        def evaluate(weights: Tensor) -> Tensor:
            found = score(_joint(leading, answers.source, num_sources, count(weights)))
            return found if is_led else found * torch.nan

        return evaluate

    return {
        "soft_source_mi": Statistic(about, soft, number, notes=test),
        **{
            name: Statistic(
                f"{what}, by the member with the largest responsibility", hard(score), number, NOBODY_LEADS
            )
            for name, (what, score) in HARD.items()
        },
    }


def _counting(answers: Answers) -> Callable[[Tensor], Tensor]:
    """From how much rows count (..., N) to how much labels do (..., E)."""
    return lambda weights: weights[..., answers.row] * answers.share


def _joint(shares: Tensor, source: Tensor, num_sources: int, counts: Tensor) -> Tensor:
    """P(source, member), (..., S, K), from (E, K), (E,) and (..., E)."""
    parts = [counts[..., source == code] @ shares[source == code] for code in range(num_sources)]
    joint = torch.stack(parts, -2)
    return joint / joint.sum((-2, -1), keepdim=True)


def _information(joint: Tensor) -> Tensor:
    independent = joint.sum(-1, keepdim=True) * joint.sum(-2, keepdim=True)
    return (xlogy(joint, joint) - xlogy(joint, independent)).sum((-2, -1)).clamp_min(0)


def _entropies(joint: Tensor) -> tuple[Tensor, Tensor]:
    return entr(joint.sum(-1)).sum(-1), entr(joint.sum(-2)).sum(-1)


def _normalised(joint: Tensor) -> Tensor:
    source, member = _entropies(joint)
    return 2 * _information(joint) / (source + member)


HARD: dict[str, tuple[str, Callable[[Tensor], Tensor]]] = {
    "nmi": ("mutual information over the arithmetic mean of both entropies", _normalised),
    "homogeneity": (
        "mutual information over the entropy of sources",
        lambda joint: _information(joint) / _entropies(joint)[0],
    ),
    "purity": (
        "share of answers whose source is the commonest of their member",
        lambda joint: joint.amax(-2).sum(-1),
    ),
}
"""Scores of the leading member from P(source, member)."""


def _exp(mean: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda weights: mean(weights).exp()


def _exp_entropy(load: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda weights: entr(load(weights)).sum(-1).exp()


def annotator_share(columns: Columns, seed: int = 0) -> dict[str, Statistic]:
    """How much of what annotators say depends on who says it, in the data: I(annotator; label) / H(label).

    The plug-in is biased upwards; the mean of the permutation null is subtracted.
    """
    answers = columns.answers
    num_sources = len(answers.sources)
    is_known = num_sources > 1 and bool((answers.source >= 0).all())
    if not (answers.is_rated and is_known and columns.has_one_set_of_choices):
        return {}
    labels = torch.nn.functional.one_hot(answers.label).double()
    count = _counting(answers)
    own = count(columns.weight)
    null, shuffled = permutation_test(
        lambda source: _information(_joint(labels, source, num_sources, own)), columns, seed
    )
    value = _information(_joint(labels, answers.source, num_sources, own))
    bias = null.mean()

    def share(weights: Tensor) -> Tensor:
        joint = _joint(labels, answers.source, num_sources, count(weights))
        return (_information(joint) - bias) / _entropies(joint)[1]

    test = {
        "p_value": (1 + int((null >= value - 1e-12).sum())) / (1 + len(null)),
        "plug_in_nats": value.item(),
        "null_mean": bias.item(),
        "permutations": len(null),
        "shuffled": shuffled,
    }
    about = (
        "I(annotator; label) minus its mean when annotators are shuffled, over H(label): what depends on the annotator "
        "alone, whatever the item; compare epistemic_share"
    )
    number = int(answers.answer.max()) + 1
    return {"annotator_share": Statistic(about, share, number, "all labels are the same", test)}
