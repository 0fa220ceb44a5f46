"""From records to columns: what is known of each row, and each answer that somebody gave, as tensors.

In: records, one at a time. Out: `Columns`; of a row remain a few hundred bytes, none of its texts. Computes no metric.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise

import torch
from torch import Tensor
from torch.special import entr, xlogy

from softspec.errors import DataError
from softspec.evaluation.records import Header, Record
from softspec.evaluation.rows import Form
from softspec.maths.divergence import jensen_shannon_matrix
from softspec.maths.options import OptionDistributions, option_distributions

CHUNK = 2048
LOWEST = -1e4
"""Nats; what is less likely counts as this in evidence about members, so that sums stay finite."""


@dataclass(frozen=True)
class Answers:
    """Labels that people or sources gave, E of them; several that one gave to one row are one answer.

    `row`, `answer`, `source` (E,) are numbers; source -1 is unknown. `share` (E,) sums to 1 over an answer, unless
    votes are what is known: then over the row. `label` (E,) numbers texts. Under each member: `loglik` (E, K) of the
    whole text, `forecast` (E, K) among the choices, and `mass` (E, K) of all choices together; nats.
    """

    row: Tensor
    answer: Tensor
    source: Tensor
    label: Tensor
    share: Tensor
    loglik: Tensor
    forecast: Tensor
    mass: Tensor
    sources: tuple[str, ...]
    is_rated: bool


@dataclass(frozen=True)
class Columns:
    """N rows; `values` are (N,) and NaN where a row has none. `divergence` (K, K): of each pair of members, nats.

    `weight` (N,) is how often a row counts, 1 on average.
    `item`, `group`, `kind` (N,) are numbers, -1 where there is none; `kinds` names the last.
    """

    form: Form
    log_weights: Tensor
    weight: Tensor
    item: Tensor
    group: Tensor
    kind: Tensor
    kinds: tuple[str, ...]
    values: dict[str, Tensor]
    answers: Answers
    divergence: Tensor | None
    has_one_set_of_choices: bool

    def rows_of(self, kinds: Sequence[str]) -> Tensor:
        """Which rows are of these kinds, (N,), bool."""
        wanted = [number for number, name in enumerate(self.kinds) if name in kinds]
        return torch.isin(self.kind, torch.tensor(wanted, dtype=torch.long))


class Numbers:
    """Names as numbers, in the order in which they come; None is -1."""

    def __init__(self) -> None:
        self._known: dict[str, int] = {}

    def of(self, name: str | None) -> int:
        return -1 if name is None else self._known.setdefault(name, len(self._known))

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._known)


class Builder:
    """Columns that grow by a chunk of records at a time."""

    def __init__(self, header: Header, length_normalise: bool) -> None:
        self.header, self.length_normalise = header, length_normalise
        self.log_weights = torch.tensor(header.log_weights, dtype=torch.float64)
        self.items, self.groups, self.kinds, self.sources, self.texts = (Numbers() for _ in range(5))
        self.row_parts: dict[str, list[Tensor]] = defaultdict(list)
        self.label_parts: dict[str, list[Tensor]] = defaultdict(list)
        self.divergence = torch.zeros(header.num_members, header.num_members, dtype=torch.float64)
        self.sets: set[frozenset[str]] = set()
        self.num_answers, self.is_rated = 0, False

    def add(self, records: Sequence[Record]) -> None:
        """Records of one form and one number of choices."""
        scores = torch.tensor([record.member_log_probs for record in records], dtype=torch.float64)
        mixture = torch.tensor([record.log_probs for record in records], dtype=torch.float64)
        lengths = torch.tensor([record.num_tokens for record in records])
        self._add_rows(records)
        if records[0].form == "generation":
            self._add_values(_generation_values(records, mixture, lengths))
            any_reference = scores.logsumexp(-1, keepdim=True)
            self._add_answers(records, any_reference, any_reference, torch.zeros_like(any_reference[..., 0]))
            return
        found = option_distributions(
            scores,
            self.log_weights,
            mixture_log_probs=mixture if self.header.weights_rule == "fixed" else None,
            num_tokens=lengths if self.length_normalise else None,
        )
        impossible = ~found.probabilities.isfinite().all(-1)
        if impossible.any():
            row = records[int(impossible.nonzero()[0])].row
            raise DataError(f"row {row}: every choice has probability 0: expected one that can be said")
        forecast = found.member_probabilities.log()
        pairs = jensen_shannon_matrix(forecast)
        weight = torch.tensor([record.weight for record in records], dtype=torch.float64)
        self.divergence += (weight[:, None, None] * pairs).sum(0)
        self._add_values(choice_values(found, mixture, _labels(records), _people(records)))
        trials = torch.tensor([_trials(record) for record in records], dtype=torch.float64)
        num_members = self.header.num_members
        self._add_values(
            {"trials": trials, "diversity": pairs.sum((-2, -1)) / max(num_members * (num_members - 1), 1)}
        )
        tempered = scores / lengths[:, None, :] if self.length_normalise else scores
        self.sets |= {frozenset(record.choices) for record in records}
        self._add_answers(records, scores, forecast, tempered.logsumexp(-1))

    def _add_values(self, values: dict[str, Tensor]) -> None:
        for name, column in values.items():
            self.row_parts[name].append(column.double())

    def _add_rows(self, records: Sequence[Record]) -> None:
        for name, column in {
            "row": [record.row for record in records],
            "item": [self.items.of(record.item) for record in records],
            "group": [self.groups.of(record.group) for record in records],
            "kind": [self.kinds.of(record.kind) for record in records],
        }.items():
            self.row_parts[name].append(torch.tensor(column))
        self.row_parts["weight"].append(
            torch.tensor([record.weight for record in records], dtype=torch.float64)
        )

    def _add_answers(self, records: Sequence[Record], scores: Tensor, forecast: Tensor, mass: Tensor) -> None:
        """Note who gave which label. scores, forecast: (B, K, C). mass: (B, K)."""
        given = [
            (place, picked, share, source, own)
            for place, record in enumerate(records)
            for own, (source, shares) in enumerate(self._given(record))
            for picked, share in shares.items()
        ]
        if not given:
            return
        places, picks, shares, sources, own = (list(column) for column in zip(*given, strict=True))
        is_new = torch.tensor([True, *(a != b for a, b in pairwise(zip(places, own, strict=True)))])
        answer = is_new.cumsum(0) - 1
        texts = [
            self.texts.of(records[place].choices[pick]) for place, pick in zip(places, picks, strict=True)
        ]
        found = {
            "row": torch.tensor([records[place].row for place in places]),
            "answer": self.num_answers + answer,
            "source": torch.tensor([self.sources.of(source) for source in sources]),
            "label": torch.tensor(texts),
            "share": torch.tensor(shares, dtype=torch.float64),
            "loglik": scores[places, :, picks].clamp_min(LOWEST),
            "forecast": forecast[places, :, picks].clamp_min(LOWEST),
            "mass": mass[places].clamp_min(LOWEST),
        }
        for name, column in found.items():
            self.label_parts[name].append(column)
        self.num_answers += int(answer[-1]) + 1

    def _given(self, record: Record) -> Iterator[tuple[str | None, dict[int, float]]]:
        """Each answer to a row: who gave it, and its shares of the choices."""
        if record.ratings:
            self.is_rated = True
            for name, picked in record.ratings.items():
                yield name, dict.fromkeys(picked, 1 / len(picked))
        elif record.form == "generation":
            yield record.source, {0: 1.0}
        elif (shares := label_shares(record)) is not None:
            yield record.source, {number: share for number, share in enumerate(shares) if share > 0}

    def columns(self, form: Form) -> Columns:
        rows = {name: torch.cat(parts) for name, parts in self.row_parts.items()}
        order = rows.pop("row").argsort()
        rows = {name: column[order] for name, column in rows.items()}
        members = self.header.num_members
        labels = {name: torch.cat(parts) for name, parts in self.label_parts.items()} or {
            **{name: torch.zeros(0, dtype=torch.long) for name in ("row", "answer", "source", "label")},
            "share": torch.zeros(0, dtype=torch.float64),
            **{name: torch.zeros(0, members, dtype=torch.float64) for name in ("loglik", "forecast", "mass")},
        }
        known = {name: rows.pop(name) for name in ("weight", "item", "group", "kind")}
        total = known["weight"].sum()
        known["weight"] = known["weight"] * (len(known["weight"]) / total)
        return Columns(
            form=form,
            log_weights=self.log_weights,
            kinds=self.kinds.names,
            values=rows,
            answers=Answers(**labels, sources=self.sources.names, is_rated=self.is_rated),
            divergence=None if form == "generation" else self.divergence / total,
            has_one_set_of_choices=len(self.sets) == 1,
            **known,
        )


def read_columns(header: Header, records: Iterable[Record], length_normalise: bool = False) -> Columns:
    """The columns of all records of a scores file.

    Args:
        length_normalise: compare the mean log-probability of a token in place of the whole choice's.
    Raises:
        DataError: rows of both forms, or one whose choices nobody can say.
    """
    builder = Builder(header, length_normalise)
    form: Form | None = None
    rows = iter(records)
    while chunk := list(islice(rows, CHUNK)):
        by_size: dict[int, list[Record]] = defaultdict(list)
        for record in chunk:
            form = form or record.form
            if record.form != form:
                raise DataError(
                    f"row {record.row} is of {record.form}, the rows before of {form}: give each form a file of its own"
                )
            by_size[len(record.choices)].append(record)
        for records_of_size in by_size.values():
            builder.add(records_of_size)
    if form is None:
        raise DataError("there are no rows")
    return builder.columns(form)


def choice_values(
    found: OptionDistributions, mixture: Tensor, labels: Tensor, people: Tensor
) -> dict[str, Tensor]:
    """What is known of B rows with C choices, each (B,).

    Args:
        mixture: (B, C), log-probabilities of whole choices. labels, people: (B, C), shares of the choices as the truth
            has them and as people picked them; NaN where nobody knows.
    """
    forecast, member, weights = found.probabilities, found.member_probabilities, found.member_weights
    confidence, prediction = forecast.max(-1)
    reverse = xlogy(forecast, forecast)[:, None, :] - xlogy(forecast[:, None, :], member)
    quadratic = (member - forecast[:, None, :]).square().sum(-1)
    picks = member.argmax(-1)
    member_accuracy = labels[:, None, :].expand_as(member).gather(-1, picks[..., None])[..., 0]
    return {
        "total": found.total_entropy,
        "aleatoric": found.aleatoric_entropy,
        "epistemic": found.epistemic,
        "max_probability": 1 - confidence,
        "confidence": confidence,
        "disagreement": found.disagreement,
        "reverse_information": (weights * reverse.sum(-1)).sum(-1).clamp_min(0),
        "quadratic_epistemic": (weights * quadratic).sum(-1),
        "nll": -xlogy(labels, forecast).sum(-1),
        "nll_sequence": -torch.where(labels == 0, 0.0, labels * mixture).sum(-1),
        "accuracy": labels.gather(-1, prediction[:, None])[:, 0],
        "brier": forecast.square().sum(-1) - 2 * (forecast * labels).sum(-1) + 1,
        "member_nll": -(weights * xlogy(labels[:, None, :], member).sum(-1)).sum(-1),
        "member_accuracy": (weights * member_accuracy).sum(-1),
        "people_entropy": entr(people).sum(-1),
        "kl_to_votes": (xlogy(people, people) - xlogy(people, forecast)).sum(-1),
    }


def _generation_values(records: Sequence[Record], mixture: Tensor, lengths: Tensor) -> dict[str, Tensor]:
    likeliest = mixture.argmax(-1, keepdim=True)
    values = {
        "nll": -mixture.logsumexp(-1),
        "nll_per_token": -(mixture / lengths).gather(-1, likeliest)[:, 0],
    }
    given = [record.generated for record in records]
    if any(each is None for each in given):
        return values
    for name in ("exact", "normalised"):
        values[f"{name}_match"] = torch.tensor([float(getattr(each, name)) for each in given])
    numbers = [each.uncertainty for each in given if each is not None]
    for name, field in (
        ("mutual_information", "mutual_information"),
        ("epistemic", "epistemic"),
        ("total", "total_entropy"),
        ("aleatoric", "aleatoric_entropy"),
    ):
        values[name] = torch.tensor([getattr(each, field) for each in numbers], dtype=torch.float64)
    surprise = [-each.log_prob / max(each.num_tokens, 1) for each in numbers]
    return {**values, "surprise": torch.tensor(surprise, dtype=torch.float64)}


def label_shares(record: Record) -> list[float] | None:
    """How much of the row each choice is right: by the answer, else by votes, else by ratings."""
    if record.answer is not None:
        return [float(number == record.answer) for number in range(len(record.choices))]
    return _picked(record, fewest=1)


def _picked(record: Record, fewest: int) -> list[float] | None:
    """What people picked: the votes, or the ratings of at least `fewest` annotators, as shares."""
    if record.votes is not None:
        total = sum(record.votes)
        return [count / total for count in record.votes]
    if record.ratings is None or len(record.ratings) < fewest:
        return None
    shares = [0.0] * len(record.choices)
    for picked in record.ratings.values():
        for number in picked:
            shares[number] += 1 / len(picked) / len(record.ratings)
    return shares


def _trials(record: Record) -> int:
    """How many people said what is right; 1 where it is known."""
    if record.answer is not None:
        return 1
    return max(1, round(sum(record.votes) if record.votes is not None else len(record.ratings or ())))


def _labels(records: Sequence[Record]) -> Tensor:
    return _stacked([label_shares(record) for record in records], len(records[0].choices))


def _people(records: Sequence[Record]) -> Tensor:
    """What several people picked; one vote is no disagreement."""
    several = [record.votes is None or sum(record.votes) > 1 for record in records]
    rows = [_picked(record, 2) if some else None for record, some in zip(records, several, strict=True)]
    return _stacked(rows, len(records[0].choices))


def _stacked(rows: Sequence[list[float] | None], size: int) -> Tensor:
    return torch.tensor([row or [torch.nan] * size for row in rows], dtype=torch.float64)
