"""Metrics against scikit-learn, scipy and definitions in plain numbers."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import entropy, spearmanr
from sklearn.metrics import brier_score_loss, log_loss, roc_auc_score

from softspec.errors import DataError
from softspec.evaluation.bootstrap import Statistic
from softspec.evaluation.columns import Columns
from softspec.evaluation.statistics import Kinds, calibration_floor, row_statistics
from softspec.maths.mixture import uniform_log_weights
from softspec.maths.options import weigh_options
from tests.support.judged_records import columns, random_records, record


def value(statistics: dict[str, Statistic], name: str, weight: torch.Tensor) -> float:
    return float(statistics[name].evaluate(weight))


def of(found: Columns, name: str) -> float:
    return value(row_statistics(found, Kinds()), name, found.weight)


def forecasts(rows: list) -> np.ndarray:
    return np.array([np.exp(each.log_probs) / np.exp(each.log_probs).sum() for each in rows])


def test_forecasts_score_as_in_scikit_learn() -> None:
    rows = random_records(60)
    found, probabilities = columns(rows), forecasts(rows)
    labels = [each.answer for each in rows]

    assert of(found, "nll") == pytest.approx(log_loss(labels, probabilities, labels=range(4)))
    brier = brier_score_loss(labels, probabilities, labels=range(4), scale_by_half=False)
    assert of(found, "brier") == pytest.approx(brier)
    assert of(found, "accuracy") == pytest.approx(np.mean(probabilities.argmax(1) == labels))
    assert of(found, "total") == pytest.approx(entropy(probabilities, axis=1).mean())


def test_rows_read_in_chunks_are_those_that_are_decided_one_by_one() -> None:
    """Choices of different numbers in one file keep their order."""
    rows = [
        *random_records(5, num_choices=3),
        *random_records(6, num_choices=4),
        *random_records(5, num_choices=3, seed=9),
    ]
    rows = [
        record(n, np.exp(each.member_log_probs).tolist(), answer=each.answer) for n, each in enumerate(rows)
    ]

    values = columns(rows).values

    for number, each in enumerate(rows):
        one = weigh_options(torch.tensor(each.member_log_probs, dtype=torch.float64), uniform_log_weights(3))
        assert values["epistemic"][number] == pytest.approx(one.epistemic, abs=1e-12)
        assert values["disagreement"][number] == pytest.approx(one.disagreement)
        assert values["nll"][number] == pytest.approx(-math.log(one.probabilities[each.answer or 0]))


def test_the_whole_sequence_is_scored_without_renormalising() -> None:
    found = columns([record(0, [[0.2, 0.1], [0.4, 0.1]], answer=0)])

    assert of(found, "nll_sequence") == pytest.approx(-math.log(0.3))
    assert of(found, "nll") == pytest.approx(-math.log(0.3 / 0.4))


def test_lengths_may_be_taken_out_of_the_comparison() -> None:
    rows = [record(0, [[0.04, 0.1]], answer=0, num_tokens=(2, 1))]

    assert of(columns(rows, length_normalise=True), "nll") == pytest.approx(-math.log(0.2 / 0.3))
    assert of(columns(rows, length_normalise=True), "nll_sequence") == pytest.approx(-math.log(0.04))
    assert of(columns(rows), "accuracy") == 0
    assert of(columns(rows, length_normalise=True), "accuracy") == 1


def test_votes_are_labels_in_shares() -> None:
    """A row of votes scores as its voters' rows with their answers, each weighing its share."""
    members = [[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]]
    voted = columns([record(0, members, votes=(3.0, 0.0, 1.0))])
    single = columns([record(0, members, answer=0, weight=0.75), record(1, members, answer=2, weight=0.25)])

    for name in ("nll", "nll_sequence", "accuracy", "brier"):
        assert of(voted, name) == pytest.approx(of(single, name))


def test_weights_count_as_copies() -> None:
    rows = random_records(12)
    copied = [rows[0], rows[0], rows[0], *rows[1:]]
    heavy = columns(
        [
            record(n, np.exp(each.member_log_probs).tolist(), answer=each.answer, weight=1 + 2.0 * (n == 0))
            for n, each in enumerate(rows)
        ]
    )
    several = columns(
        [
            record(n, np.exp(each.member_log_probs).tolist(), answer=each.answer)
            for n, each in enumerate(copied)
        ]
    )

    for name in ("nll", "accuracy", "brier", "ece", "epistemic"):
        assert of(heavy, name) == pytest.approx(of(several, name))


def test_kl_to_votes_needs_no_smoothing() -> None:
    members, votes = [[0.6, 0.3, 0.1]], np.array([7.0, 3.0, 0.0])
    found = columns([record(0, members, votes=tuple(votes))])

    assert of(found, "kl_to_votes") == pytest.approx(entropy(votes / 10, members[0]))


def test_uncertainty_follows_people_as_scipy_says() -> None:
    generator = np.random.default_rng(3)
    rows = [
        record(
            n,
            generator.dirichlet(np.ones(3), 2).tolist(),
            votes=tuple(map(float, generator.multinomial(5, [0.5, 0.3, 0.2]))),
        )
        for n in range(40)
    ]
    found = columns(rows)
    people = [entropy(np.array(each.votes)) for each in rows]

    for name in ("total", "aleatoric", "epistemic"):
        truth = spearmanr(found.values[name], people).statistic
        assert of(found, f"spearman_{name}") == pytest.approx(truth)
    assert of(found, "epistemic_share") == pytest.approx(of(found, "epistemic") / of(found, "total"))


def test_ratings_are_people_and_one_vote_is_no_disagreement() -> None:
    members = [[0.5, 0.5], [0.9, 0.1]]
    rated = columns([record(0, members, ratings={"a": (0,), "b": (0, 1), "c": (1,), "d": (0,)})])
    alone = columns([record(0, members, ratings={"a": (0,)}), record(1, members, votes=(1.0, 0.0))])

    assert rated.values["people_entropy"].item() == pytest.approx(entropy([5 / 8, 3 / 8]))
    assert alone.values["people_entropy"].isnan().all()
    assert of(alone, "accuracy") == 1


def test_conflict_is_told_from_agreement_as_in_scikit_learn() -> None:
    rows = [
        record(n, np.exp(each.member_log_probs).tolist(), kind=("agreed", "odd", "conflict")[n % 3])
        for n, each in enumerate(random_records(30))
    ]
    found = columns(rows)
    kind = np.arange(30) % 3
    epistemic = found.values["epistemic"].numpy()

    statistics = row_statistics(found, Kinds(ood=("odd",)))

    for name, chosen, positive in (
        ("auroc_conflict_epistemic", kind != 1, 2),
        ("auroc_ood_epistemic", kind >= 0, 1),
    ):
        truth = roc_auc_score(kind[chosen] == positive, epistemic[chosen])
        assert value(statistics, name, found.weight) == pytest.approx(truth)
        assert statistics[name].n == chosen.sum()
    ratio = epistemic[kind == 2].mean() / epistemic[kind == 0].mean()
    assert value(statistics, "epistemic_ratio_conflict", found.weight) == pytest.approx(ratio)
    assert "nll" not in statistics  # nobody knows the answers


def test_the_floor_of_calibration_is_what_a_calibrated_forecaster_scores() -> None:
    """Against the mean of a half-normal in each bin; people who vote together are less noisy."""
    confidence = torch.full((400,), 0.7, dtype=torch.float64)
    one = calibration_floor(
        confidence, torch.ones(400, dtype=torch.float64), torch.ones(400, dtype=torch.float64)
    )
    ten = calibration_floor(
        confidence, torch.full((400,), 10.0, dtype=torch.float64), torch.ones(400, dtype=torch.float64)
    )

    truth = math.sqrt(2 / math.pi * 0.7 * 0.3 / 400)
    assert one["floor"] == pytest.approx(truth, rel=0.15)
    assert ten["floor"] == pytest.approx(truth / math.sqrt(10), rel=0.15)


@pytest.mark.parametrize("is_right", [True, False])
def test_all_right_or_all_wrong_has_no_ranking(is_right: bool) -> None:
    found = columns([record(n, [[0.8, 0.2], [0.7, 0.3]], answer=int(not is_right)) for n in range(5)])

    assert of(found, "aurc_epistemic") == pytest.approx(float(not is_right))
    assert math.isnan(of(found, "prr_total"))
    assert of(found, "e_aurc_total") == pytest.approx(0)


def test_one_member_and_no_labels_leave_what_can_be_said() -> None:
    statistics = row_statistics(columns([record(n, [[0.8, 0.2]]) for n in range(3)]), Kinds())

    assert set(statistics) == {"total", "aleatoric", "epistemic", "disagreement"}


def test_choices_that_nobody_can_say_are_refused_with_their_row() -> None:
    row = record(1, [[1.0, 1.0]])
    impossible = record(1, [[1.0, 1.0]]).__class__(
        **{**row.__dict__, "member_log_probs": ((-math.inf,) * 2,)}
    )

    with pytest.raises(DataError, match="row 1: every choice has probability 0"):
        columns([record(0, [[0.5, 0.5]]), impossible])


def test_rows_of_both_forms_are_refused() -> None:
    with pytest.raises(DataError, match="row 1 is of generation"):
        columns([record(0, [[0.5, 0.5]]), record(1, [[0.5]], form="generation")])
