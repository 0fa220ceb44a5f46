"""The command line: data on stdout, one clear line and exit code 2 for what the user can fix."""

import json
from pathlib import Path

import pytest

from softspec.app.cli.main import main
from tests.support.tiny import random_adapters


def test_inspect_prints_the_manifest_as_json(
    tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = random_adapters(tiny_base, tmp_path / "my", num_members=2, name="my")

    code = main(["inspect", str(folder), "--json"])

    assert code == 0
    assert json.loads(capsys.readouterr().out)["num_members"] == 2


def test_inspect_says_what_there_is(
    tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = random_adapters(tiny_base, tmp_path / "my", num_members=2, rank=4, name="my")

    main(["inspect", str(folder)])

    assert "2 of LoRA rank 4" in capsys.readouterr().out


def only_line_of_a_mistake(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What the command line says to these arguments, in one line, before it ends with exit code 2."""
    code = main(arguments)

    lines = capsys.readouterr().err.strip().splitlines()
    assert code == 2
    assert len(lines) == 1
    return lines[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "missing.yaml"], "cannot read 'missing.yaml'"),
        (["inspect", "missing"], "no ensemble.json in 'missing'"),
        (["serve", "missing"], "no ensemble.json in"),
        (["serve", "missing", "--policy-action", "abstain"], "needs a threshold"),
        (["serve", "missing", "--policy-action", "guess"], "expected answer, abstain or route"),
    ],
    ids=" ".join,
)
def test_a_users_mistake_is_one_line_and_exit_code_2(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)

    line = only_line_of_a_mistake(arguments, capsys)

    assert message in line


def test_unknown_flags_are_refused_except_for_vllm(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["inspect", "my", "--port", "8000"])

    assert stop.value.code == 2
    assert "unrecognized arguments: --port 8000" in capsys.readouterr().err
