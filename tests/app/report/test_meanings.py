"""Every number that `softspec evaluate` gives is explained, in two sentences."""

import re
from pathlib import Path

import pytest

from softspec.app.report.meanings import SECTIONS, meaning
from softspec.evaluation.judge import Asked, judge
from softspec.evaluation.statistics import MEANS, UNCERTAINTIES
from tests.support.judged_records import random_records, record, written


def sentences(words: str) -> int:
    return len(re.findall(r"[.!?](?: |$)", words))


@pytest.mark.parametrize("section", SECTIONS)
def test_sections_have_two_sentences(section: str) -> None:
    assert sentences(SECTIONS[section]) == 2


def test_all_metrics_of_choices_are_explained(tmp_path: Path) -> None:
    """With kinds, sources and annotators, so that every metric is there."""
    rows = [
        record(
            each.row,
            [[0.6, 0.4], [0.3, 0.7], [0.5, 0.5]],
            ratings={"a": (each.row % 2,), "b": (0,)},
            kind=("conflict", "agreed", "ood")[each.row % 3],
        )
        for each in random_records(30, num_choices=2)
    ]

    metrics = judge(written(tmp_path / "scores.jsonl", rows), {}, Asked(draws=2))["metrics"]

    assert "auroc_ood_total" in metrics
    assert "annotator_share" in metrics
    assert "next_gain_1" in metrics
    found = {name: meaning(name) or "" for name in metrics}
    assert not [name for name, words in found.items() if sentences(words) != 2]


def test_all_metrics_of_generation_are_explained() -> None:
    rankings = [
        f"{family}_{name}" for family in ("aurc", "e_aurc", "prr") for name in UNCERTAINTIES["generation"]
    ]

    assert all(sentences(meaning(name) or "") == 2 for name in (*MEANS["generation"], *rankings))


def test_an_unknown_metric_has_no_words() -> None:
    assert meaning("aurc_of_something") is None
