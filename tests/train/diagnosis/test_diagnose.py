"""`softspec diagnose` on small runs: from its arguments to the page and the JSON; and the pilot's truth."""

import json
from pathlib import Path
from typing import Any

import pytest

from softspec.app.cli.main import main
from softspec.train.run import train_ensemble
from tests.support.tiny_training import chat_rows, preference_rows, write_config, write_rows

pytestmark = pytest.mark.slow


def rows_of_groups() -> list[dict[str, Any]]:
    return [{**row, "group": row["source"]} for row in chat_rows(48)]


@pytest.mark.parametrize("objective", ["sft", "dpo"])
def test_a_run_to_come_is_diagnosed(
    objective: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_config(tmp_path)
    rows = rows_of_groups()
    if objective == "dpo":
        rows = [{**row, "group": "AB"[number % 2]} for number, row in enumerate(4 * preference_rows())]
    write_rows(tmp_path / "train.jsonl", rows)
    write_config(tmp_path, granularity="group", group_rows=2, objective=objective, max_steps=8)

    options = ["--steps", "4", "--rows", "8", "--json", str(tmp_path / "d.json")]

    code = main(["diagnose", str(tmp_path / "config.yaml"), *options])

    shown, found = capsys.readouterr(), json.loads((tmp_path / "d.json").read_text())
    assert code == 0
    assert (
        "softspec: adapters of 2 sources: 4 steps of 4 rows, each under 2 adapters; 8 rows are judged"
        in shown.err
    )
    assert set(found["sources"]["gains"]) == {"A", "B"}
    assert found["setting"]["groups_per_step"] == 2
    assert found["stability"]["critical_alpha"]["n"] == 4
    assert len(found["growth"]["spread"]) == 4
    assert found["ambiguity"] is None
    assert f"verdict: {found['advice']['verdict']}" in shown.out
    assert not (tmp_path / "ensemble").exists()


def test_a_finished_run_is_diagnosed_beside_one_adapter(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_config(tmp_path, eval_file="train.jsonl")
    train_ensemble(config)
    single = config.model_copy(update={"num_members": 1, "output_dir": tmp_path / "single"})
    train_ensemble(single)
    run = ["diagnose", str(config.output_dir), "--config", str(tmp_path / "config.yaml")]
    options = ["--single", str(single.output_dir), "--json", str(tmp_path / "d.json")]

    code = main([*run, *options, "--probes", "ambiguity", "--probes", "growth"])

    found, held_out = json.loads((tmp_path / "d.json").read_text()), _held_out(config.output_dir)
    assert code == 0
    assert found["ambiguity"]["mixture_nll"]["value"] == pytest.approx(held_out["mixture_nll"], abs=1e-4)
    assert found["ambiguity"]["member_nll"]["value"] == pytest.approx(held_out["member_nll"], abs=1e-4)
    ours = found["ambiguity"]["advantage"]["value"]
    assert ours == pytest.approx(
        _held_out(single.output_dir)["mixture_nll"] - held_out["mixture_nll"], abs=1e-4
    )
    assert found["growth"]["steps"] == [1, 2, 3, 4]
    capsys.readouterr()

    write_rows(tmp_path / "train.jsonl", chat_rows(14))
    assert main(run) == 2
    assert "other examples than the ensemble was trained on" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["."], "give --config CONFIG.yaml"),
        (["nowhere", "--config", "my.yaml"], "no ensemble 'nowhere'"),
        (["my.yaml", "--single", "one"], "--single is compared with an ensemble"),
        (["my.yaml", "--steps", "0"], "--steps"),
        (["my.yaml", "--json", "nowhere/d.json"], "there is no directory 'nowhere'"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_arguments_that_do_not_fit_are_refused(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["diagnose", *arguments]) == 2
    assert says in capsys.readouterr().err


def _held_out(directory: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((directory / "ensemble.json").read_text())["held_out"]
    return content
