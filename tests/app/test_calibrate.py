"""`softspec calibrate` from the command line, on a tiny ensemble that knows nothing."""

import json
import random
from pathlib import Path
from typing import Any

import pytest

from softspec.app.cli.main import main
from softspec.artefact.manifest import load_manifest
from tests.support.tiny import random_adapters, tiny_llama, tiny_tokenizer


@pytest.fixture(scope="module")
def ensemble(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("calibrated")
    base = tiny_llama(folder / "base")
    tiny_tokenizer(vocab_size=320).save_pretrained(base)
    return random_adapters(base, folder / "my", num_members=2)


def rows_of(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def choices(tmp_path_factory: pytest.TempPathFactory) -> Path:
    draw = random.Random(0)
    rows = [
        {"prompt": f"is {n} odd", "choices": ["yes", "no"], "answer": draw.randrange(2), "group": "ab"[n % 2]}
        for n in range(60)
    ]
    return rows_of(tmp_path_factory.mktemp("rows") / "choices.jsonl", rows)


def test_choices_become_a_calibration_of_decisions(
    ensemble: Path, choices: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "found.json"
    flags = ("--target-coverage", "0.5", "--target-error", "0.05", "--json", str(out))

    code = main(["calibrate", str(ensemble), str(choices), *flags])

    assert code == 0
    found = load_manifest(ensemble).calibration
    assert found is not None
    assert (found.judged, found.metric, found.num_rows) == ("decisions", "epistemic", 60)
    assert {each.group for each in found.thresholds} == {None, "a", "b"}
    told = capsys.readouterr().out
    assert '{"target_coverage": 0.5}: answer where epistemic <= ' in told
    assert '{"target_error": 0.05}: no threshold certified: ' in told
    document = json.loads(out.read_text())
    assert document["calibration"]["thresholds"][0]["target_coverage"] == 0.5
    assert {each["target_error"] for each in document["unmet"]} == {0.05}


def test_calibration_that_is_there_is_not_replaced_unasked(
    ensemble: Path, choices: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["calibrate", str(ensemble), str(choices)])
    before = load_manifest(ensemble)
    capsys.readouterr()

    code = main(["calibrate", str(ensemble), str(choices)])

    assert (code, load_manifest(ensemble)) == (2, before)
    assert "is calibrated for decisions already: give --overwrite" in capsys.readouterr().err


def test_answers_that_are_all_wrong_leave_the_ensemble_as_it_is(
    ensemble: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = load_manifest(ensemble)
    rows = rows_of(tmp_path / "rows.jsonl", [{"prompt": f"say {n}", "answers": ["never"]} for n in range(50)])

    code = main(["calibrate", str(ensemble), str(rows), "--max-tokens", "2"])

    assert (code, load_manifest(ensemble)) == (2, before)
    assert "all 50 answers are wrong: expected right and wrong ones" in capsys.readouterr().err
