"""`softspec report` from the command line, on a run whose truth is known and whose texts are hostile."""

import json
import re
import shutil
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from softspec.app.cli.main import main
from softspec.artefact.calibration import Calibration, Threshold
from softspec.artefact.manifest import load_manifest, save_manifest
from softspec.evaluation.records import Generated
from tests.support.judged_records import record, written
from tests.support.reported_run import (
    HOSTILE,
    answer_uncertainty,
    epistemic_of_conflict,
    log_training,
    scored_rows,
)


class Reader(HTMLParser):
    """Elements with their attributes, and the text of the page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self.texts).split())


@pytest.fixture
def run(tmp_path: Path, tiny_ensembles: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run by itself; commands are given where nothing else is."""
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copytree(tiny_ensembles["block-2"], tmp_path / "run"))


@dataclass(frozen=True)
class Whole:
    """A report with everything that needs no model, beside a baseline that thinks the same."""

    source: str
    page: Reader
    document: dict[str, Any]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, tiny_ensembles: dict[str, Path]) -> Whole:
    folder = tmp_path_factory.mktemp("whole")
    run = Path(shutil.copytree(tiny_ensembles["block-2"], folder / "run"))
    log_training(run)
    data, scores = scored_rows(folder, run)
    (other := folder / "other").mkdir()
    _, base = scored_rows(other, run, model="base", model_digest="b")
    command = ["report", str(run), "--scores", str(scores), "--data", str(data), "--bootstrap", "20"]
    command += ["--baseline", f"<i>base</i>={base}", "--json", str(folder / "report.json")]
    page = reported(command, folder)
    document = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    return Whole((folder / "report.html").read_text(encoding="utf-8"), page, document)


def reported(command: list[str], folder: Path) -> Reader:
    page = folder / "report.html"
    assert main([*command, "--output", str(page)]) == 0
    return Reader(page.read_text(encoding="utf-8"))


def test_all_parts_are_there(whole: Whole) -> None:
    page = whole.page

    for heading in (
        "Negative log-likelihood",
        "Load",
        "Routing perplexity",
        "Reliability",
        "Risk and coverage",
        "Mutual information by kind",
        "Responsibilities by source",
        "Similarity of members",
        "Most contested",
    ):
        assert heading in page.text
    assert sum(tag == "svg" and "viewbox" in attributes for tag, attributes in page.elements) == 8


def test_nothing_is_loaded_and_nothing_of_the_data_is_markup(whole: Whole) -> None:
    page = whole.page

    tags = {tag for tag, _ in page.elements}
    assert not tags & {"script", "img", "iframe", "object", "embed", "image", "base", "form"}
    for tag, attributes in page.elements:
        assert not any(name.startswith("on") for name in attributes), tag
        for name in ("href", "src", "xlink:href", "action", "srcset"):
            assert (attributes.get(name) or "#").startswith(("#", "data:,")), (tag, attributes)
    assert not re.search(r"https?:|@import|url\((?!#)", whole.source)
    assert '<script>document.title="broken"</script>' in page.text
    assert "שלום עולם 😀" in page.text
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_numbers_are_those_of_evaluate(whole: Whole) -> None:
    """And of the known truth: the members' disagreement on conflicts, which is at the top of the contested."""
    (scores,), expected = whole.document["scores"], epistemic_of_conflict()

    assert scores["by_kind"]["conflict"]["epistemic"]["value"] == pytest.approx(expected)
    assert scores["by_kind"]["agreed"]["epistemic"]["value"] == pytest.approx(0, abs=1e-9)
    assert [row["row"] for row in scores["contested"]] == list(range(1, 25, 2))
    assert scores["risk_coverage"]["ranked by total"]["risk"][-1] == pytest.approx(
        1 - scores["metrics"]["accuracy"]["value"]
    )
    assert f"{expected:.3f} nats" in whole.page.text
    assert f"mean {expected:.3f} nats, n 20" in whole.page.text


def test_members_answers_are_shown_with_the_words_that_differ(whole: Whole) -> None:
    row = whole.source[whole.source.index("<b>row 3</b>") :]
    assert "<mark>" in row[: row.index("</article>")]
    assert "0.990" in row[: row.index("</article>")]


def test_a_run_alone_says_what_is_missing(tmp_path: Path, run: Path) -> None:
    page = reported(["report", str(run)], tmp_path)

    assert "No training curves" in page.text
    assert "softspec evaluate RUN DATA.jsonl" in page.text
    assert "No calibration" in page.text
    assert "--red-team-prompts" in page.text


def test_a_baseline_stands_beside(whole: Whole) -> None:
    assert "Against <i>base</i>" in whole.page.text
    assert "<i>base</i>, ranked by total" in whole.page.text


def test_calibration_is_shown(tmp_path: Path, run: Path) -> None:
    manifest = load_manifest(run)
    threshold = Threshold(
        target_error=0.05, threshold=0.25, delta=0.1, coverage=0.625, error=0.03, num_rows=77
    )
    calibration = Calibration(
        judged="decisions",
        metric="epistemic",
        method="isotonic",
        curve=((0.0, 0.9), (1.0, 0.5)),
        thresholds=(threshold,),
        weights_rule=manifest.weights_rule,
        num_rows=77,
    )
    save_manifest(run, manifest.model_copy(update={"calibration": calibration}))

    page = reported(["report", str(run)], tmp_path)

    assert "Of decisions, by epistemic (isotonic)" in page.text
    assert "error 0.05all0.2500.6250.0300.9077" in page.text.replace(" ", "").replace(
        "error0.05", "error 0.05"
    )


@pytest.mark.parametrize(
    ("records", "told"),
    [
        ([record(0, [[0.9, 0.1], [0.2, 0.8]], answer=0)], "Give --data"),
        ([record(row, [[0.9, 0.1], [0.9, 0.1]], answer=0) for row in range(5)], "What it is worth"),
        ([record(row, [[0.9, 0.1], [0.5, 0.5]]) for row in range(5)], "Mutual information"),
    ],
    ids=["one row", "all right, all alike", "no labels"],
)
def test_data_that_say_little_make_a_page(tmp_path: Path, run: Path, records: list[Any], told: str) -> None:
    _, known = scored_rows(tmp_path, run)
    header = json.loads(known.read_text(encoding="utf-8").splitlines()[0])
    (other := tmp_path / "few").mkdir()
    scores = written(other / "few.jsonl", records, model_digest=header["model_digest"])

    page = reported(["report", str(run), "--scores", str(scores), "--bootstrap", "10"], tmp_path)

    assert told in page.text


def test_generation_rows_show_references_under_each_member(tmp_path: Path, run: Path) -> None:
    _, known = scored_rows(tmp_path, run)
    digest = json.loads(known.read_text(encoding="utf-8").splitlines()[0])["model_digest"]
    rows = [
        record(
            row,
            [[0.5], [0.125]],
            form="generation",
            choices=("the <b>blue</b> one",),
            source="AB"[row % 2],
            generated=Generated("the red one", False, bool(row % 3), answer_uncertainty(0.1 * row)),
        )
        for row in range(6)
    ]
    (other := tmp_path / "said").mkdir()
    scores = written(other / "said.jsonl", rows, model_digest=digest)

    page = reported(["report", str(run), "--scores", str(scores), "--bootstrap", "10"], tmp_path)

    assert "row 5" in page.text
    assert "the <b>blue</b> one" in page.text
    assert "−2.08" in page.text  # log 0.125
    assert "−7.25" in page.text  # the second member's, of the answer itself
    assert "Risk and coverage" in page.text
    assert "Reliability" not in page.text


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--scores", "none.jsonl"], "cannot read 'none.jsonl'"),
        (["--output", "none/report.html"], "there is no directory 'none'"),
        (["--baseline", "base"], "expected NAME=SCORES.jsonl"),
        (["--data", "none.jsonl"], "--data"),
        (["--red-team", "pairs.jsonl"], "--red-team-prompts"),
        (["--refusal", "("], "--refusal is"),
        (["--bootstrap", "0"], "--bootstrap"),
        (["--samples", "0"], "--samples"),
        (["--json", "report.html"], "--json is 'report.html', which may not be replaced"),
        (["--red-team", "report.samples.jsonl", "--red-team-prompts", "none"], "may not be replaced"),
        (["--red-team-prompts", "none.jsonl"], "none.jsonl"),
    ],
)
def test_mistakes_are_one_line(
    run: Path, capsys: pytest.CaptureFixture[str], flags: list[str], told: str
) -> None:
    assert main(["report", str(run), *flags]) == 2
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1


def test_scores_of_another_model_are_refused(
    tmp_path: Path, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where the base's fingerprint tells which adapters are meant."""
    manifest = load_manifest(run)
    base = manifest.base_model.model_copy(update={"fingerprint": "f"})
    save_manifest(run, manifest.model_copy(update={"base_model": base}))
    _, scores = scored_rows(tmp_path, run, model_digest="other")

    assert main(["report", str(run), "--scores", str(scores)]) == 2
    assert "scores of another model" in capsys.readouterr().err


def test_kinds_have_the_names_that_are_given(
    tmp_path: Path, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As of `softspec evaluate`; the two are swapped here."""
    _, scores = scored_rows(tmp_path, run)
    command = ["report", str(run), "--scores", str(scores), "--bootstrap", "20", "--json", "it.json"]

    assert main(command) == 0
    before = json.loads(Path("it.json").read_text())["scores"][0]["metrics"]["auroc_conflict_epistemic"]
    assert main([*command, "--conflict", "agreed", "--agreed", "conflict"]) == 0
    after = json.loads(Path("it.json").read_text())["scores"][0]["metrics"]["auroc_conflict_epistemic"]
    assert main([*command, "--ood", "nothing"]) == 2

    assert after["value"] == pytest.approx(1 - before["value"])
    assert after["value"] != before["value"]
    assert "--ood is 'nothing', but the kinds of rows" in capsys.readouterr().err


def test_data_that_were_not_scored_are_refused(
    tmp_path: Path, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, scores = scored_rows(tmp_path, run)
    data.write_text(data.read_text(encoding="utf-8").replace(HOSTILE[:8], "other"), encoding="utf-8")

    assert main(["report", str(run), "--scores", str(scores), "--data", str(data)]) == 2
    assert "the scores are of data.jsonl" in capsys.readouterr().err


def test_a_broken_log_is_told_with_its_line(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log_training(run, steps=2)
    with (run / "training.jsonl").open("a") as file:
        file.write("{broken\n")

    assert main(["report", str(run)]) == 2
    assert "training.jsonl:4" in capsys.readouterr().err
