"""The document of an evaluation: every metric with interval, estimator and n, and differences from baselines."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from softspec.errors import ConfigError, DataError
from softspec.evaluation.judge import Asked, judge
from softspec.evaluation.records import Generated, Record
from softspec.evaluation.statistics import Kinds
from softspec.evaluation.table import table
from softspec.maths.answer import AnswerUncertainty
from tests.support.judged_records import random_records, record, written

FEW = Asked(draws=50)


def labelled(num_rows: int = 30) -> list[Record]:
    """Rows with all that a row may have."""
    return [
        record(
            n,
            np.exp(each.member_log_probs).tolist(),
            answer=each.answer,
            ratings={"a": (n % 4,), "b": (0,)},
            kind=("agreed", "conflict", "ood")[n % 3],
        )
        for n, each in enumerate(random_records(num_rows))
    ]


def weaker(rows: list[Record]) -> list[Record]:
    """One member that knows nothing."""
    return [
        record(n, [[0.25] * 4], answer=each.answer, ratings=each.ratings, kind=each.kind)
        for n, each in enumerate(rows)
    ]


def test_every_metric_has_its_interval_estimator_and_number(tmp_path: Path) -> None:
    document = judge(written(tmp_path / "s.jsonl", labelled()), {}, FEW)

    for name, metric in document["metrics"].items():
        assert {"value", "low", "high", "n", "estimator"} <= set(metric), name
        assert metric["estimator"]
        assert metric["value"] is not None or metric["reason"], name
        if metric["low"] is not None:
            assert metric["low"] <= metric["high"], name
    asked_for = {
        "nll", "nll_sequence", "accuracy", "brier", "ece", "aurc_epistemic", "e_aurc_total", "prr_max_probability",
        "auroc_conflict_epistemic", "auroc_ood_total", "kl_to_votes", "spearman_total", "spearman_aleatoric",
        "spearman_epistemic", "epistemic_share", "annotator_share", "soft_source_mi", "diversity", "next_nll_0",
        "next_gain_1", "next_gain_4", "next_gain_16",
    }  # fmt: skip
    assert asked_for <= set(document["metrics"])
    assert document["resampled"] == {"unit": "row", "count": 30, "draws": 50, "seed": 0}
    assert set(document["by_kind"]) == {"agreed", "conflict", "ood"}
    json.dumps(document, allow_nan=False)
    for name in document["metrics"]:
        assert name in table(document)


def test_a_baseline_is_compared_on_the_same_resampled_rows(tmp_path: Path) -> None:
    rows = labelled()
    own = written(tmp_path / "own.jsonl", rows)
    other = written(
        tmp_path / "other.jsonl", weaker(rows), model="weak", model_digest="w", model_kind="adapter"
    )

    document = judge(own, {"weak": other, "itself": own}, FEW)

    weak, itself = document["baselines"]["weak"], document["baselines"]["itself"]
    gap = document["metrics"]["nll"]["value"] - weak["metrics"]["nll"]["value"]
    assert weak["difference"]["nll"]["value"] == pytest.approx(gap)
    assert weak["metrics"]["nll"]["value"] == pytest.approx(math.log(4))
    assert weak["difference"]["nll"]["low"] < gap < weak["difference"]["nll"]["high"]
    assert "soft_source_mi" not in weak["difference"]
    assert itself["difference"]["nll"]["value"] == 0
    assert itself["difference"]["nll"]["low"] is None
    json.dumps(document, allow_nan=False)
    assert "minus weak" in table(document)


def test_intervals_are_repeated_by_their_seed(tmp_path: Path) -> None:
    scores = written(tmp_path / "s.jsonl", labelled())

    assert judge(scores, {}, FEW) == judge(scores, {}, FEW)
    assert judge(scores, {}, FEW) != judge(scores, {}, Asked(draws=50, seed=1))


def test_a_baseline_of_other_data_is_refused(tmp_path: Path) -> None:
    rows = labelled()
    own, other = (
        written(tmp_path / "own.jsonl", rows),
        written(tmp_path / "other.jsonl", rows, data_digest="e"),
    )

    with pytest.raises(ConfigError, match=r"--baseline weak: .* of other data"):
        judge(own, {"weak": other}, FEW)
    with pytest.raises(ConfigError, match="--baseline weak: cannot read"):
        judge(own, {"weak": tmp_path / "none.jsonl"}, FEW)


def test_a_kind_that_is_asked_for_must_be_there(tmp_path: Path) -> None:
    scores = written(tmp_path / "s.jsonl", labelled())

    with pytest.raises(
        ConfigError, match=r"--ood is 'far', but the kinds .* are: 'agreed', 'conflict', 'ood'"
    ):
        judge(scores, {}, Asked(Kinds(ood=("far",))))


def test_incomplete_scores_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has 3 of 9 rows"):
        judge(written(tmp_path / "s.jsonl", labelled(3), num_rows=9), {}, FEW)


@pytest.mark.parametrize(
    "rows",
    [
        [record(0, [[0.7, 0.3], [0.6, 0.4]], answer=0, source="A")],
        [record(n, [[0.7, 0.3], [0.7, 0.3]], answer=0, source="A", kind="conflict") for n in range(4)],
        [record(n, [[0.5, 0.5]]) for n in range(2)],
        [
            record(0, [[1.0, 0.0], [0.0, 1.0]], votes=(1.0, 1.0)),
            record(1, [[1.0, 0.0], [1.0, 0.0]], answer=1),
        ],
    ],
    ids=["one row", "constant", "no labels", "certain"],
)
def test_what_has_no_answer_is_null_with_a_reason(tmp_path: Path, rows: list[Record]) -> None:
    document = judge(written(tmp_path / "s.jsonl", rows), {}, FEW)

    assert document["metrics"]
    for metric in document["metrics"].values():
        assert metric["low"] is not None or metric["reason"]
    json.dumps(document, allow_nan=False)
    assert table(document)


def generated(number: int) -> Record:
    uncertainty = AnswerUncertainty(
        num_tokens=4,
        log_prob=-2.0 - number,
        mutual_information=number / 10,
        total_entropy=1.0,
        aleatoric_entropy=0.75,
        epistemic=0.25,
        max_epistemic=0.5,
        disagreement=0.0,
        max_disagreement=0.0,
        member_log_probs=(-2.0, -3.0),
        member_weights=(0.5, 0.5),
    )
    is_right = number < 3
    return record(
        number,
        [[0.2, 0.1], [0.4, 0.1]],
        form="generation",
        num_tokens=(2, 3),
        source="AB"[number % 2],
        generated=Generated("a", exact=number == 0, normalised=is_right, uncertainty=uncertainty),
    )


def test_generated_answers_are_scored_by_likelihood_and_by_match(tmp_path: Path) -> None:
    metrics = judge(written(tmp_path / "s.jsonl", [generated(n) for n in range(6)]), {}, FEW)["metrics"]

    assert metrics["nll"]["value"] == pytest.approx(-math.log(0.3 + 0.1))
    assert metrics["nll_per_token"]["value"] == pytest.approx(-math.log(0.3) / 2)
    assert metrics["exact_match"]["value"] == pytest.approx(1 / 6)
    assert metrics["normalised_match"]["value"] == pytest.approx(1 / 2)
    assert metrics["prr_mutual_information"]["value"] == pytest.approx(1)
    assert metrics["aurc_epistemic"]["value"] == pytest.approx(1 / 2)
    assert metrics["next_nll_0"]["value"] == pytest.approx(-math.log(0.4))
    assert "ece" not in metrics
