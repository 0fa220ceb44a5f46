"""`softspec evaluate` from the command line, with a tiny ensemble."""

import json
from pathlib import Path

import pytest

from softspec.app.cli.main import main
from softspec.evaluation.records import read_header

ROWS = [
    {"prompt": f"Colour {n}? ", "choices": ["red", "blue"], "answer": n % 2, "source": "AB"[n % 2]}
    for n in range(6)
]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


@pytest.fixture
def ensemble(tiny_ensembles: dict[str, Path]) -> str:
    return str(tiny_ensembles["block-4"])


def test_metrics_are_printed_and_written_and_scores_are_kept(
    tmp_path: Path, data: Path, ensemble: str, capsys: pytest.CaptureFixture[str]
) -> None:
    output, scores = tmp_path / "metrics.json", tmp_path / "metrics.scores.jsonl"

    assert main(["evaluate", ensemble, str(data), "--json", str(output), "--bootstrap", "20"]) == 0
    first = json.loads(output.read_text())
    written = scores.stat().st_mtime_ns

    assert first["metrics"]["nll"]["n"] == 6
    assert "nll" in capsys.readouterr().out
    command = ["evaluate", ensemble, str(data), "--json", str(output), "--bootstrap", "20"]
    assert main([*command, "--baseline", f"again={scores}"]) == 0
    second = json.loads(output.read_text())
    assert second["metrics"] == first["metrics"]
    assert second["baselines"]["again"]["difference"]["nll"]["value"] == 0
    assert scores.stat().st_mtime_ns == written or read_header(scores).num_rows == 6


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--json", "none/metrics.json"], "there is no directory 'none'"),
        (["--baseline", "single"], "expected NAME=SCORES.jsonl"),
        (["--baseline", "single=none.jsonl"], "--baseline single: cannot read"),
        (["--bootstrap", "0"], "--bootstrap"),
    ],
)
def test_mistakes_are_told_before_a_model_is_loaded(
    data: Path,
    ensemble: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    flags: list[str],
    told: str,
) -> None:
    monkeypatch.setattr("softspec.app.evaluate.load", lambda *_, **__: pytest.fail("loaded"))

    assert main(["evaluate", ensemble, str(data), *flags]) == 2
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1


def test_scores_of_other_data_are_not_replaced(
    tmp_path: Path, data: Path, ensemble: str, capsys: pytest.CaptureFixture[str]
) -> None:
    scores = tmp_path / "scores.jsonl"
    command = ["evaluate", ensemble, str(data), "--scores", str(scores), "--bootstrap", "20"]
    assert main(command) == 0
    data.write_text(data.read_text().replace("red", "green"))

    assert main(command) == 2
    assert "has scores of other data" in capsys.readouterr().err
    assert main([*command, "--overwrite"]) == 0
