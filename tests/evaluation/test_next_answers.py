"""What n answers of a source tell of the next one, against the Bayes posterior worked out by enumeration."""

from itertools import product

import numpy as np
import pytest
import torch

from softspec.evaluation.bootstrap import resampling_of, sample
from softspec.evaluation.columns import Columns
from softspec.evaluation.next_answers import AFTER, next_answers
from tests.support.judged_records import columns, record

MEMBERS = np.array([[0.8, 0.15, 0.05], [0.1, 0.2, 0.7]])


def annotated(num_items: int, num_annotators: int, seed: int = 0, members: np.ndarray = MEMBERS) -> Columns:
    """Each annotator is one of the members."""
    generator = np.random.default_rng(seed)
    rows = []
    for row in range(num_items):
        ratings = {
            f"a{number}": (int(generator.choice(3, p=members[number % 2])),)
            for number in range(num_annotators)
        }
        rows.append(record(row, members.tolist(), ratings=ratings))
    return columns(rows)


def expected_nll(after: int) -> float:
    """Of the next answer of an annotator that is one of the members: over all sequences of answers."""
    total = 0.0
    for truth in MEMBERS:
        for answers in product(range(3), repeat=after + 1):
            evidence = MEMBERS[:, list(answers[:-1])].prod(1)
            posterior = evidence / evidence.sum()
            total -= truth[list(answers)].prod() * np.log(posterior @ MEMBERS[:, answers[-1]]) / 2
    return total


def test_the_curve_is_that_of_the_bayes_posterior() -> None:
    found = next_answers(annotated(150, 12))
    assert found is not None

    means = found.nll.mean(0)

    for place in range(3):
        assert means[place].item() == pytest.approx(expected_nll(AFTER[place]), abs=0.05)
    entropy = -(MEMBERS * np.log(MEMBERS)).sum(1).mean()
    assert means[3].item() == pytest.approx(entropy, abs=0.05)  # after 16 there is nothing left to learn


def test_the_evidence_of_one_answer_is_averaged_over_the_others() -> None:
    """Three answers of one source: each is predicted from either of the two others, worked out by hand."""
    found = next_answers(columns([record(n, MEMBERS.tolist(), answer=n, source="A") for n in range(3)]))
    assert found is not None

    for target in range(3):
        scores = []
        for other in {0, 1, 2} - {target}:
            posterior = MEMBERS[:, other] / MEMBERS[:, other].sum()
            scores.append(-np.log(posterior @ MEMBERS[:, target]))
        assert min(scores) - 1e-9 <= found.nll[target, 1] <= max(scores) + 1e-9
        assert found.nll[target, 0].item() == pytest.approx(-np.log(MEMBERS[:, target].mean()))
    assert found.nll[:, 2:].isnan().all()


def test_without_evidence_it_is_the_score_of_the_row() -> None:
    """Also where members think the choices together more or less likely."""
    generator = np.random.default_rng(0)
    rows = [record(n, (generator.random((2, 3)) * 0.3).tolist(), answer=n % 3, source="A") for n in range(20)]
    own = columns(rows)

    found = next_answers(own)

    assert found is not None
    assert found.nll[:, 0].tolist() == pytest.approx(own.values["nll"].tolist())


def test_answers_to_the_same_item_tell_nothing() -> None:
    """They would give the answer away; two items leave one answer to learn from."""
    rows = [
        record(n, MEMBERS.tolist(), answer=(0, 0, 2, 2)[n], source="A", item=f"i{n // 2}") for n in range(4)
    ]

    found = next_answers(columns(rows))

    assert found is not None
    posterior = MEMBERS[:, 2] / MEMBERS[:, 2].sum()
    assert found.nll[0, 1].item() == pytest.approx(-np.log(posterior @ MEMBERS[:, 0]))
    assert found.nll[0, 1] == found.nll[1, 1]


def test_several_picks_of_one_annotator_are_one_answer() -> None:
    rows = [
        record(0, MEMBERS.tolist(), ratings={"a": (0, 2)}),
        record(1, MEMBERS.tolist(), ratings={"a": (1,)}),
    ]

    found = next_answers(columns(rows))

    assert found is not None
    evidence = np.sqrt(MEMBERS[:, 0] * MEMBERS[:, 2])
    assert found.nll[1, 1].item() == pytest.approx(-np.log(evidence / evidence.sum() @ MEMBERS[:, 1]))
    mean = -(np.log(MEMBERS[:, 0].mean()) + np.log(MEMBERS[:, 2].mean())) / 2
    assert found.nll[0, 0].item() == pytest.approx(mean)


@pytest.mark.parametrize(("annotators", "unit", "count"), [(4, "row", 30), (12, "source", 12)])
def test_many_annotators_are_resampled_and_few_are_taken_as_given(
    annotators: int, unit: str, count: int
) -> None:
    own = annotated(30, annotators)
    found = next_answers(own)
    assert found is not None
    resampling = found.resampling(resampling_of(own, 50, 0))

    assert (resampling.unit, resampling.count) == (unit, count)
    gain = sample(found.statistics(), resampling)["next_gain_16"]
    assert gain.value > 0.2
    assert torch.quantile(gain.draws, 0.025) > 0.1


def test_members_that_are_alike_learn_nothing() -> None:
    found = next_answers(annotated(30, 2, members=np.array([MEMBERS[0], MEMBERS[0]])))

    assert found is not None
    assert (found.nll - found.nll[:, :1]).abs().max() < 1e-9
    assert next_answers(columns([record(0, [[0.5, 0.5]], answer=0, source="A")])) is None
    assert next_answers(columns([record(0, MEMBERS.tolist(), answer=0)])) is None
