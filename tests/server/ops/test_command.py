"""The printed command is one that a shell splits into what `softspec serve` would have given to vLLM."""

import os
import shlex
from pathlib import Path

import pytest

from softspec.app.cli.main import main
from softspec.server.ops.command import vllm_command
from softspec.server.ops.settings import Settings
from tests.support.tiny import random_adapters


@pytest.fixture(scope="module")
def ensemble(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_adapters(tiny_base, tmp_path_factory.mktemp("my own") / "it's", num_members=2, name="law")


def parts(command: str) -> tuple[dict[str, str], list[str]]:
    """The variables and the words of a command."""
    words = shlex.split(command.replace("\\\n", " "))
    start = words.index("vllm")
    return dict(word.split("=", 1) for word in words[:start]), words[start:]


def test_command_is_what_ours_would_start(ensemble: Path, tiny_base: Path) -> None:
    command = vllm_command(Settings((ensemble,)), None, ["--port", "1", "--chat-template", "a b"], 7, {})

    variables, words = parts(command)
    assert words[:3] == ["vllm", "serve", str(tiny_base)]
    assert words[3:5] == ["--shutdown-timeout", "7"]
    assert words[-4:] == ["--port", "1", "--chat-template", "a b"]
    assert "softspec.engine.core.scheduler.LockstepScheduler" in words
    assert variables["SOFTSPEC_ENSEMBLE"] == str(ensemble)
    assert variables["VLLM_PLUGINS"].split(",")[-1] == "softspec"
    assert "SOFTSPEC_SETTINGS" not in variables
    assert Settings.from_environment(variables) == Settings((ensemble,))


def test_command_line_prints_it_and_starts_nothing(
    ensemble: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("softspec.server.ops.launch.serve", None)
    before = dict(os.environ)
    flags = ["--policy-action", "abstain", "--policy-threshold", "0.35", "--record", "rows.jsonl"]

    code = main(["serve", str(ensemble), "--print-vllm-command", *flags])

    variables, words = parts(capsys.readouterr().out)
    told = Settings.from_environment(variables)
    assert (code, words[:2]) == (0, ["vllm", "serve"])
    assert (told.rules.default.threshold, told.record and told.record.path.name) == (0.35, "rows.jsonl")
    assert dict(os.environ) == before
    assert not Path("rows.jsonl").exists()
