"""Runs that stop and go on: the same numbers as if nothing had happened."""

import signal
from pathlib import Path
from typing import Any

import pytest

import softspec.train.run
from softspec.app.cli.main import main
from softspec.artefact.manifest import load_manifest
from softspec.errors import ConfigError, Interrupted
from softspec.train.run import train_ensemble
from tests.support.tiny_training import chat_rows, preference_rows, write_config, write_rows
from tests.support.training_runs import (
    STEPS,
    Killed,
    assert_same_adapters,
    dying_at,
    interrupted,
    logged_losses,
    signal_in_step,
)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_a_stopped_and_resumed_run_equals_an_uninterrupted_one(tmp_path: Path, number: int) -> None:
    whole = write_config(tmp_path, max_steps=STEPS, output_dir="whole")
    train_ensemble(whole)

    config = interrupted(tmp_path, number)
    train_ensemble(config, resume=True)

    assert_same_adapters(whole, config)
    losses = [logged_losses(run) for run in (whole, config)]
    assert losses[0] == losses[1]
    assert len(losses[0]) == STEPS


@pytest.mark.slow
def test_preferences_priors_and_schedules_resume_to_the_same_numbers(tmp_path: Path) -> None:
    write_rows(tmp_path / "pairs.jsonl", preference_rows())
    settings: dict[str, Any] = {
        "objective": "dpo",
        "train_file": "pairs.jsonl",
        "learning_rate": 0.001,
        "prior_strength": 1.0,
        "responsibility_floor": 0.1,
        "alpha_warmup_ratio": 0.5,
    }
    whole = write_config(tmp_path, max_steps=STEPS, output_dir="whole", **settings)
    train_ensemble(whole)

    config = interrupted(tmp_path, **settings)
    train_ensemble(config, resume=True)

    assert_same_adapters(whole, config)


def test_stopping_leaves_a_checkpoint_and_no_ensemble(tmp_path: Path) -> None:
    config = interrupted(tmp_path)

    assert (tmp_path / "ensemble.partial" / "checkpoint.pt").is_file()
    assert not config.output_dir.exists()


def test_the_message_says_how_to_go_on(tmp_path: Path) -> None:
    config = write_config(tmp_path, max_steps=STEPS)

    with (
        signal_in_step(2, signal.SIGINT),
        pytest.raises(Interrupted, match=rf"stopped after step 2 of {STEPS}; go on with: .*--resume"),
    ):
        train_ensemble(config)


def test_the_process_handles_signals_as_before_afterwards(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)

    interrupted(tmp_path)

    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_a_new_run_does_not_silently_drop_an_unfinished_one(tmp_path: Path) -> None:
    config = interrupted(tmp_path)

    with pytest.raises(
        ConfigError, match="has an unfinished run; go on with --resume or drop it with --overwrite"
    ):
        train_ensemble(config)

    train_ensemble(write_config(tmp_path, max_steps=1), overwrite=True)
    assert not (tmp_path / "ensemble.partial").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"learning_rate": 0.02}, "cannot resume: learning_rate is 0.02, but the run began with 0.01"),
        (
            {"max_steps": STEPS + 1},
            f"cannot resume: max_steps is {STEPS + 1}, but the run began with {STEPS}",
        ),
        ({"activation": {"kind": "always"}}, "cannot resume: activation is"),
    ],
    ids=["learning rate", "steps", "activation"],
)
def test_resuming_with_other_settings_is_refused(
    tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    interrupted(tmp_path)

    with pytest.raises(ConfigError, match=message):
        train_ensemble(write_config(tmp_path, **{"max_steps": STEPS, **settings}), resume=True)


@pytest.mark.parametrize(
    "rows",
    [
        [{"prompt": "a", "completion": "b"}],
        chat_rows()[::-1],
        [{**row, "weight": 2} for row in chat_rows()],
        [{**row, "group": 1} for row in chat_rows()],
    ],
    ids=["tokens", "order", "weights", "groups"],
)
def test_resuming_with_other_examples_is_refused(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    config = interrupted(tmp_path)
    write_rows(tmp_path / "train.jsonl", rows)

    with pytest.raises(ConfigError, match="train_file gives other examples than the run began with"):
        train_ensemble(config, resume=True)


def test_resuming_without_a_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nothing to resume: no checkpoint in '.*ensemble\.partial'"):
        train_ensemble(write_config(tmp_path), resume=True)


@pytest.fixture
def begun_with_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The configuration file of a run that was begun with `--set` in another folder, and killed."""
    write_config(tmp_path)
    monkeypatch.chdir(tmp_path / "base")
    settings = ["num_members=3", "eval_file=../train.jsonl", "learning_rate=2e-3", "save_steps=1"]
    arguments = [argument for setting in settings for argument in ("--set", setting)]
    with monkeypatch.context() as patch:
        patch.setattr("softspec.train.run.optimizer_step", dying_at(3, softspec.train.run.optimizer_step))
        with pytest.raises(Killed):
            main(["train", str(tmp_path / "config.yaml"), *arguments])
    monkeypatch.chdir(tmp_path)
    return str(tmp_path / "config.yaml")


def test_resuming_repeats_what_the_run_began_with(begun_with_set: str) -> None:
    assert main(["train", begun_with_set, "--resume"]) == 0

    manifest = load_manifest(Path(begun_with_set).with_name("ensemble"))
    assert manifest.num_members == 3
    assert manifest.held_out
    assert manifest.training["settings"]["learning_rate"] == 2e-3


def test_what_is_set_when_resuming_comes_last(
    begun_with_set: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", begun_with_set, "--resume", "--set", "num_members=4"]) == 2

    assert "cannot resume: num_members is 4, but the run began with 3" in capsys.readouterr().err
