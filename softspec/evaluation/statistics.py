"""The metrics of rows: how good forecasts are, whether uncertainty tells which, and whether it follows people's.

In: columns. Out: `Statistic`s by name, those that apply. Knows neither files nor intervals.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from softspec.evaluation.bootstrap import Statistic
from softspec.evaluation.columns import Columns
from softspec.maths.scoring import (
    aurc,
    auroc,
    excess_aurc,
    expected_calibration_error,
    prediction_rejection_ratio,
    spearman,
)

MEANS = {
    "choices": {
        "nll": "mean of -log P(label) among the choices, nats",
        "nll_sequence": "mean of -log P(whole choice with its end) of the label, not renormalised, nats",
        "accuracy": "share of rows whose likeliest choice is the label; votes count as their shares",
        "brier": "mean over rows of the squared distance to the one-hot label, 0 to 2",
        "kl_to_votes": "mean of KL(votes || forecast): cross-entropy minus the votes' entropy, unsmoothed, nats",
        "member_nll": "mean of the members' own -log P(label) among the choices, by their weights, nats",
        "member_accuracy": "mean accuracy of single members, by their weights",
        "total": "mean entropy of the mixture over the choices, nats",
        "aleatoric": "mean of the members' entropies over the choices, nats",
        "epistemic": "mean mutual information of choice and member, nats",
        "reverse_information": "mean of sum_k w_k KL(mixture || member k), nats",
        "quadratic_epistemic": "mean of sum_k w_k |member k - mixture|^2",
        "disagreement": "mean weighted share of members whose likeliest choice is not the mixture's",
        "diversity": "mean Jensen-Shannon divergence of two different members over the choices, nats",
    },
    "generation": {
        "nll": "mean of -log P(any reference answer, with its end), nats",
        "nll_per_token": "mean of -log P per token of the likeliest reference answer, nats",
        "exact_match": "share of greedy answers that are a reference answer",
        "normalised_match": "share of greedy answers that are one without case, punctuation and articles",
        "total": "mean over answers of the mean entropy of a token, nats",
        "aleatoric": "mean over answers of the members' mean entropy of a token, nats",
        "epistemic": "mean over answers of the mean mutual information of token and member, nats",
        "mutual_information": "mean over answers of KL(posterior over members || prior), nats",
    },
}
"""Form -> metrics that are means over rows, each with what it is the mean of."""
UNCERTAINTIES = {
    "choices": {
        "epistemic": "mutual information of choice and member",
        "total": "entropy of the mixture",
        "aleatoric": "mean entropy of the members",
        "max_probability": "1 - probability of the likeliest choice",
    },
    "generation": {
        "mutual_information": "mutual information of the answer",
        "epistemic": "mean mutual information of a token",
        "total": "mean entropy of a token",
        "aleatoric": "mean of the members' entropies of a token",
        "surprise": "-log P of the answer per token",
    },
}
"""Form -> what rows are ranked by, from the most certain to the least."""
CORRECT = {"choices": "accuracy", "generation": "normalised_match"}
NOT_SHOWN_ALONE = ("member_nll", "member_accuracy", "reverse_information", "quadratic_epistemic", "diversity")
"""Means that say nothing of a model with one member."""
BY_KIND = ("nll", "accuracy", "normalised_match", "total", "aleatoric", "epistemic")
FLOOR_DRAWS = 200


@dataclass(frozen=True)
class Kinds:
    """Which kinds of rows are to be told apart by uncertainty; empty ones are not looked for."""

    conflict: tuple[str, ...] = ("conflict",)
    agreed: tuple[str, ...] = ("agreed",)
    ood: tuple[str, ...] = ("ood",)


def row_statistics(columns: Columns, kinds: Kinds, seed: int = 0) -> dict[str, Statistic]:
    """All metrics of rows that apply to these."""
    return {
        **_means(columns),
        **_calibration(columns, seed),
        **_selection(columns),
        **_detection(columns, kinds),
        **_agreement(columns),
    }


def kind_statistics(columns: Columns) -> dict[str, dict[str, Statistic]]:
    """For each kind of rows the means that are comparable."""
    return {
        kind: {
            name: _mean(columns.values[name], about, columns.rows_of([kind]))
            for name, about in MEANS[columns.form].items()
            if name in BY_KIND and name in columns.values
        }
        for kind in columns.kinds
    }


def _means(columns: Columns) -> dict[str, Statistic]:
    is_alone = len(columns.log_weights) == 1
    return {
        name: _mean(columns.values[name], about)
        for name, about in MEANS[columns.form].items()
        if name in columns.values
        and not columns.values[name].isnan().all()
        and not (is_alone and name in NOT_SHOWN_ALONE)
    }


def _mean(values: Tensor, about: str, among: Tensor | None = None) -> Statistic:
    known = ~values.isnan() if among is None else ~values.isnan() & among
    rows = known.nonzero()[:, 0]
    own = values[rows]

    def evaluate(weights: Tensor) -> Tensor:
        counts = weights[..., rows]
        return counts @ own / counts.sum(-1)

    reason = "a label has probability 0" if own.isinf().any() else "no row has a label"
    return Statistic(about, evaluate, len(rows), reason)


def _calibration(columns: Columns, seed: int) -> dict[str, Statistic]:
    if columns.form == "generation" or columns.values["accuracy"].isnan().all():
        return {}
    rows = (~columns.values["accuracy"].isnan()).nonzero()[:, 0]
    confidence, correct = columns.values["confidence"][rows], columns.values["accuracy"][rows]

    def evaluate(weights: Tensor) -> Tensor:
        return expected_calibration_error(confidence, correct, weights=weights[..., rows])

    floor = calibration_floor(confidence, columns.values["trials"][rows], columns.weight[rows], seed)
    about = (
        "15 equal-width bins of the likeliest choice's probability; floor: mean and 95 % quantile of a perfectly "
        "calibrated forecaster with these confidences; resampling raises it, so its interval is too high"
    )
    return {"ece": Statistic(about, evaluate, len(rows), notes=floor)}


def calibration_floor(confidence: Tensor, trials: Tensor, weight: Tensor, seed: int = 0) -> dict[str, float]:
    """What calibration errors a perfectly calibrated forecaster has, by simulation.

    Args:
        confidence: (N,). trials: (N,), how many people said whether the answer is right; 1 where it is known.
    """
    generator = torch.Generator().manual_seed(seed)
    scores = []
    for _ in range(FLOOR_DRAWS):
        correct = torch.binomial(trials, confidence.clamp(0, 1), generator=generator) / trials
        scores.append(expected_calibration_error(confidence, correct, weights=weight))
    found = torch.stack(scores)
    return {"floor": found.mean().item(), "floor_95": found.quantile(0.95).item()}


def _selection(columns: Columns) -> dict[str, Statistic]:
    """Does uncertainty rank wrong answers behind right ones?"""
    right = columns.values.get(CORRECT[columns.form])
    if right is None or right.isnan().all():
        return {}
    rows = (~right.isnan()).nonzero()[:, 0]
    errors = 1 - right[rows]
    scores: dict[str, tuple[Callable[..., Tensor], str]] = {
        "aurc": (aurc, "mean error rate of the i most certain rows over all i"),
        "e_aurc": (excess_aurc, "AURC minus that of the best possible ranking"),
        "prr": (
            prediction_rejection_ratio,
            "share of the way from a random (0) to the best possible (1) ranking",
        ),
    }
    found = {}
    for uncertainty, what in UNCERTAINTIES[columns.form].items():
        ranked = columns.values[uncertainty][rows]
        for name, (score, about) in scores.items():
            found[f"{name}_{uncertainty}"] = Statistic(
                f"{about}; ranked by {what}; ties as in random order",
                partial(_ranking, score, ranked, errors, rows),
                len(rows),
                "all answers are right or all are wrong",
            )
    return found


def _ranking(
    score: Callable[..., Tensor], ranked: Tensor, errors: Tensor, rows: Tensor, weights: Tensor
) -> Tensor:
    return score(ranked, errors, weights=weights[..., rows])


def _detection(columns: Columns, kinds: Kinds) -> dict[str, Statistic]:
    """Does uncertainty tell kinds of rows apart?"""
    conflict, agreed, ood = (columns.rows_of(names) for names in (kinds.conflict, kinds.agreed, kinds.ood))
    found: dict[str, Statistic] = {}
    for name, positives, negatives, what in (
        ("conflict", conflict, agreed, f"{_named(kinds.conflict)} against {_named(kinds.agreed)}"),
        ("ood", ood, ~ood, f"{_named(kinds.ood)} against all other kinds"),
    ):
        if not (positives.any() and negatives.any()):
            continue
        for uncertainty, ranked_by in UNCERTAINTIES[columns.form].items():
            if uncertainty in columns.values:
                found[f"auroc_{name}_{uncertainty}"] = _auroc(
                    columns.values[uncertainty], positives, negatives, f"{what}; ranked by {ranked_by}"
                )
        if name == "conflict":
            found["epistemic_ratio_conflict"] = _ratio(
                columns.values.get("epistemic"), positives, negatives, what
            )
    return {name: each for name, each in found.items() if each.n}


def _auroc(values: Tensor, positives: Tensor, negatives: Tensor, what: str) -> Statistic:
    high, low = positives.nonzero()[:, 0], negatives.nonzero()[:, 0]

    def evaluate(weights: Tensor) -> Tensor:
        return auroc(values[high], values[low], weights[..., high], weights[..., low])

    return Statistic(f"share of pairs in the right order, ties half; {what}", evaluate, len(high) + len(low))


def _ratio(values: Tensor | None, positives: Tensor, negatives: Tensor, what: str) -> Statistic:
    if values is None:
        return Statistic("", lambda weights: weights.sum(-1), 0)
    over, under = _mean(values, "", positives), _mean(values, "", negatives)

    def evaluate(weights: Tensor) -> Tensor:
        below = under.evaluate(weights)
        return torch.where(below > 1e-12, over.evaluate(weights) / below, torch.nan)

    about = f"ratio of mean epistemic uncertainty, {what}"
    return Statistic(about, evaluate, over.n + under.n, "no epistemic uncertainty to compare with")


def _agreement(columns: Columns) -> dict[str, Statistic]:
    """Does uncertainty follow people's disagreement?"""
    entropy = columns.values.get("people_entropy")
    if entropy is None or entropy.isnan().all():
        return {}
    rows = (~entropy.isnan()).nonzero()[:, 0]
    found = {
        f"spearman_{name}": _spearman(columns.values[name][rows], entropy[rows], rows, what)
        for name, what in UNCERTAINTIES["choices"].items()
        if name != "max_probability"
    }
    total, epistemic = columns.values["total"][rows], columns.values["epistemic"][rows]

    def share(weights: Tensor) -> Tensor:
        counts = weights[..., rows]
        return counts @ epistemic / (counts @ total)

    about = "mean epistemic over mean total uncertainty of the model, on rows that several people judged"
    return {**found, "epistemic_share": Statistic(about, share, len(rows), "no uncertainty to share")}


def _spearman(values: Tensor, entropy: Tensor, rows: Tensor, what: str) -> Statistic:
    return Statistic(
        f"rank correlation of the entropy of people's picks and the {what}; ties have their mean rank",
        lambda weights: spearman(values, entropy, weights[..., rows]),
        len(rows),
        "one of the two is the same on all rows",
    )


def _named(kinds: Sequence[str]) -> str:
    return " or ".join(f"'{kind}'" for kind in kinds)
