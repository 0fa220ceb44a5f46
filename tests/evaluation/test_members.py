"""Responsibilities by source, and what chance would make of them."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from scipy.stats import kstest
from sklearn.metrics import homogeneity_score, normalized_mutual_info_score

from softspec.evaluation.columns import Columns
from softspec.evaluation.members import (
    annotator_share,
    member_statistics,
    permutation_test,
    responsibilities,
    responsibility_matrix,
)
from softspec.maths.renyi import soft_source_mi, specialisation
from tests.support.judged_records import columns, record

SURE = [[0.9, 0.1], [0.1, 0.9]]


def of(found: Columns, name: str) -> float:
    return float(member_statistics(found)[name].evaluate(found.weight))


def specialists(num_rows: int = 40, noise: float = 0.2, seed: int = 0, **labels: object) -> list:
    """Two sources, each of which mostly says what one member says."""
    generator = np.random.default_rng(seed)
    rows = []
    for row in range(num_rows):
        source = row % 2
        answer = source if generator.random() > noise else 1 - source
        rows.append(record(row, SURE, answer=answer, source="AB"[source], **labels))
    return rows


def test_sources_share_information_with_members_as_in_training() -> None:
    found = columns(specialists())
    shares, sources = responsibilities(found).T, found.answers.source

    assert of(found, "soft_source_mi") == pytest.approx(soft_source_mi(shares, sources).item())
    assert of(found, "specialisation") == pytest.approx(specialisation(shares).item())
    leading = shares.argmax(0)
    assert of(found, "nmi") == pytest.approx(normalized_mutual_info_score(sources, leading))
    assert of(found, "homogeneity") == pytest.approx(homogeneity_score(sources, leading))
    assert of(found, "purity") == pytest.approx((leading == sources).double().mean().item())


def test_the_matrix_has_the_mean_responsibilities_of_each_source() -> None:
    found = columns(specialists(noise=0))
    matrix = responsibility_matrix(found)

    assert matrix is not None
    assert matrix.sources == ("A", "B")
    assert matrix.answers == (20, 20)
    assert matrix.rows[0] == pytest.approx([0.9, 0.1])
    assert matrix.load == pytest.approx([0.5, 0.5])


def test_votes_and_several_picks_of_one_annotator_weigh_their_shares() -> None:
    rated = columns([record(0, SURE, ratings={"a": (0, 1), "b": (1,)})])

    assert rated.answers.share.tolist() == [0.5, 0.5, 1.0]
    assert rated.answers.answer.tolist() == [0, 0, 1]
    matrix = responsibility_matrix(rated)
    assert matrix is not None
    assert np.array(matrix.rows) == pytest.approx(np.array([[0.5, 0.5], [0.1, 0.9]]))


def test_leaders_are_not_told_where_rounding_would_choose_them() -> None:
    alike = columns(
        [record(n, [[0.5, 0.5], [0.5, 0.5 + 1e-9]], answer=n % 2, source="AB"[n % 2]) for n in range(8)]
    )

    assert math.isnan(of(alike, "purity"))
    assert of(alike, "soft_source_mi") == pytest.approx(0, abs=1e-9)


def test_specialists_are_beyond_chance_and_one_source_says_nothing() -> None:
    test = member_statistics(columns(specialists(80)))["soft_source_mi"].notes
    one = columns([record(n, SURE, answer=0, source="A") for n in range(4)])

    assert test["p_value"] == pytest.approx(1 / 201)
    assert math.isnan(of(one, "soft_source_mi"))
    assert member_statistics(columns([record(0, [[0.5, 0.5]], answer=0, source="A")])) == {}


@pytest.mark.parametrize("is_shared", [True, False], ids=["items that several judged", "rows of their own"])
def test_chance_gives_every_p_alike(is_shared: bool) -> None:
    """Items differ, so shuffling across items where each has all sources would be another null."""
    generator, found = np.random.default_rng(0), []
    for trial in range(60):
        rows = []
        for row in range(24):
            lean = generator.random()
            item = f"i{row // 2}" if is_shared else f"i{row}"
            members = [[lean, 1 - lean], [0.5, 0.5]]
            rows.append(
                record(row, members, item=item, answer=int(generator.random() > lean), source="AB"[row % 2])
            )
        own = columns(rows)
        shares = responsibilities(own).T
        null, _ = permutation_test(partial(soft_source_mi, shares), own, trial, permutations=39)
        value = soft_source_mi(shares, own.answers.source)
        found.append((1 + int((null >= value).sum()) - generator.random()) / 40)

    assert kstest(found, "uniform").pvalue > 0.01


@pytest.mark.parametrize(
    ("labels", "what"),
    [
        (lambda n: {"item": f"i{n // 2}"}, "answers to the same item"),
        (lambda n: {"source": "AB"[n // 4 % 2], "group": f"g{n // 4}"}, "groups"),
        (lambda n: {"group": "AB"[n % 2]}, "answers"),
    ],
)
def test_what_goes_together_is_shuffled_together(labels: object, what: str) -> None:
    rows = [record(n, SURE, **{"answer": 0, "source": "AB"[n % 2], **labels(n)}) for n in range(24)]  # type: ignore[operator]
    found = columns(rows)
    before = found.answers.source

    shuffled, said = permutation_test(lambda source: source, found, permutations=20)

    assert said == what
    assert (shuffled.sort(-1).values == before.sort().values).all()
    assert (shuffled != before).any()
    if what == "groups":
        assert (shuffled.reshape(20, 6, 4) == shuffled.reshape(20, 6, 4)[..., :1]).all()
    if what == "answers to the same item":
        assert (shuffled.reshape(20, 12, 2).sum(-1) == 1).all()


def test_annotators_with_habits_of_their_own_share_information_with_labels() -> None:
    """Closed form: each of two says one thing nine times in ten; chance is subtracted."""
    generator = np.random.default_rng(0)

    def rows(habit: float) -> Columns:
        picks = generator.random((400, 2)) < [habit, 1 - habit]
        return columns(
            [record(n, SURE, ratings={"a": (int(x),), "b": (int(y),)}) for n, (x, y) in enumerate(picks)]
        )

    own, none = (annotator_share(found)["annotator_share"] for found in (rows(0.9), rows(0.5)))

    truth = 1 - (-(0.9 * math.log(0.9) + 0.1 * math.log(0.1))) / math.log(2)
    weight = torch.ones(400, dtype=torch.float64)
    assert float(own.evaluate(weight)) == pytest.approx(truth, abs=0.06)
    assert float(none.evaluate(weight)) == pytest.approx(0, abs=0.01)
    assert own.notes["p_value"] == pytest.approx(1 / 201)
    assert annotator_share(columns(specialists())) == {}
