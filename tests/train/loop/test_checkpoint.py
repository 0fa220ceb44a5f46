"""Runs that stop and go on: the same numbers as if nothing had happened."""

import errno
import io
import itertools
import re
import resource
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import pytest
import torch

import softspec.train.run
from softspec.app.cli.main import main
from softspec.artefact.manifest import load_manifest
from softspec.errors import ConfigError, DivergedError, Interrupted, StorageError
from softspec.train.loop.checkpoint import open_run, save_checkpoint
from softspec.train.run import train_ensemble
from tests.support.tiny import tiny_llama
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

pytestmark = pytest.mark.slow


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


def test_the_base_is_asked_about_preferences_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A resumed run has what it said, to the last bit."""
    write_rows(tmp_path / "pairs.jsonl", preference_rows())
    settings: dict[str, Any] = {"objective": "dpo", "train_file": "pairs.jsonl", "eval_file": "pairs.jsonl"}
    whole = write_config(tmp_path, max_steps=STEPS, output_dir="whole", **settings)
    train_ensemble(whole)
    config = interrupted(tmp_path, **settings)

    def ask_again(*_: Any) -> None:
        raise AssertionError("the base was asked again")

    monkeypatch.setattr("softspec.train.objective.preferences.reference_margins", ask_again)
    train_ensemble(config, resume=True)

    assert_same_adapters(whole, config)


def test_margins_that_were_lost_are_computed_again(tmp_path: Path) -> None:
    write_rows(tmp_path / "pairs.jsonl", preference_rows())
    config = interrupted(tmp_path, objective="dpo", train_file="pairs.jsonl")
    (tmp_path / "ensemble.partial" / "margins.json").write_text('{"cut')

    assert train_ensemble(config, resume=True) == config.output_dir


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


@pytest.mark.parametrize("place", ["same", "elsewhere"])
def test_resuming_on_another_base_is_refused(tmp_path: Path, place: str) -> None:
    """Whether it was put where the first one was, or is named instead of it."""
    interrupted(tmp_path)
    base = tmp_path / ("base" if place == "same" else "other")
    tiny_llama(base, seed=1)

    with pytest.raises(
        ConfigError, match=r"cannot resume: base_model .* has other weights, another tokenizer"
    ):
        train_ensemble(write_config(tmp_path, max_steps=STEPS, base_model=base.name), resume=True)


@pytest.mark.parametrize("name", ["tokenizer_config.json", "chat_template.jinja"])
def test_resuming_with_another_template_or_tokenizer_is_refused(tmp_path: Path, name: str) -> None:
    config = interrupted(tmp_path)
    (tmp_path / "base" / name).write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')

    with pytest.raises(ConfigError, match="cannot resume: base_model"):
        train_ensemble(config, resume=True)


def test_base_and_data_may_be_called_otherwise_when_resuming(tmp_path: Path) -> None:
    whole = write_config(tmp_path, max_steps=STEPS, output_dir="whole")
    train_ensemble(whole)
    interrupted(tmp_path)
    for before, after in (("base", "moved"), ("train.jsonl", "rows.jsonl")):
        (tmp_path / before).rename(tmp_path / after)
    tiny_llama(tmp_path / "base", seed=1)

    config = write_config(tmp_path, max_steps=STEPS, base_model="moved", train_file="rows.jsonl")
    train_ensemble(config, resume=True)

    assert_same_adapters(whole, config)


def test_held_out_examples_are_bound_where_they_decide_the_end(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"eval_file": "eval.jsonl", "eval_steps": 30, "early_stopping_patience": 9}
    write_rows(tmp_path / "eval.jsonl", chat_rows(4))
    config = interrupted(tmp_path, **settings)
    write_rows(tmp_path / "eval.jsonl", chat_rows(5))

    with pytest.raises(ConfigError, match="eval_file gives other examples than the run began with"):
        train_ensemble(config, resume=True)


def cut(path: Path) -> None:
    """Half a file."""
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def emptied(path: Path) -> None:
    """A file of nothing."""
    path.write_bytes(b"")


def garbage(path: Path) -> None:
    """A file of something else."""
    path.write_bytes(b"garbage" * 100)


def of_something_else(path: Path) -> None:
    """A file that PyTorch reads, and no run wrote."""
    torch.save({"weights": [1.0]}, path)


def of_other_weights(path: Path) -> None:
    """The state of adapters of another shape."""
    content = torch.load(path, weights_only=True)
    content["state"]["weights"] = [torch.zeros(1)]
    torch.save(content, path)


@pytest.mark.parametrize("damage", [cut, emptied, garbage, of_something_else, of_other_weights])
def test_a_damaged_checkpoint_is_one_line(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    config = interrupted(tmp_path)
    damage(tmp_path / "ensemble.partial" / "checkpoint.pt")

    with pytest.raises(
        ConfigError, match=r"checkpoint\.pt' cannot be read \([^\n]*\); remove '[^\n]*' and start again$"
    ):
        train_ensemble(config, resume=True)


# Where room ends, or something else goes wrong


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """The system refuses to write larger files, as it does on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_checkpoint_without_room_is_one_line_and_leaves_the_older_one(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    run = open_run(config, resume=False, overwrite=False)
    run.clear()
    save_checkpoint(run, 1, {"weights": []}, config, "digest")
    before = run.checkpoint.read_bytes()

    with files_of_at_most(100_000), pytest.raises(StorageError) as error:
        save_checkpoint(run, 2, {"weights": [torch.zeros(500_000)]}, config, "digest")

    assert re.fullmatch(
        r"cannot write a checkpoint of step 2 to '.*': .*it needs 2\.0 MB and \d+\.\d MB are free; there is that of "
        r"step 1, from which --resume goes on",
        str(error.value),
    )
    assert error.value.exit_code == 2
    assert run.checkpoint.read_bytes() == before
    assert not run.checkpoint.with_suffix(".new").exists()
    run.close()


def test_a_disk_that_fills_up_ends_a_run_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_config(tmp_path, save_steps=2)
    saving = torch.save

    def full(content: Any, file: Any) -> None:
        if content["step"] < 4:
            saving(content, file)
        else:
            file.write(b"part of it")
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("softspec.train.loop.checkpoint.torch.save", full)

    code = main(["train", str(tmp_path / "config.yaml")])

    *_, line = capsys.readouterr().err.splitlines()
    assert code == 2
    assert "softspec: cannot write a checkpoint of step 4" in line
    assert "No space left on device; it needs 0.1 MB" in line
    assert "there is that of step 2" in line
    assert sorted(path.name for path in (tmp_path / "ensemble.partial").iterdir()) == [
        "checkpoint.pt",
        "lock",
        "run.json",
        "tensorboard",
        "training.jsonl",
    ]
    monkeypatch.setattr("softspec.train.loop.checkpoint.torch.save", saving)
    assert main(["train", str(tmp_path / "config.yaml"), "--resume"]) == 0


def failing_at(call: int, function: Callable[..., Any], error: Exception) -> Callable[..., Any]:
    """The function, which raises in that call."""
    calls = itertools.count(1)

    def failing(*arguments: Any) -> Any:
        if next(calls) == call:
            raise error
        return function(*arguments)

    return failing


@pytest.mark.parametrize(
    "place",
    ["step.add_gradients", "checkpoint.TrainingLog.write"],
    ids=["in a step", "in the log"],
)
def test_an_unknown_error_does_not_cost_the_steps_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = write_config(tmp_path, output_dir="whole")
    train_ensemble(whole)
    config = write_config(tmp_path)
    name = f"softspec.train.loop.{place}"
    module, _, attribute = name.rpartition(".")
    real = getattr(resolve_name(module), attribute)

    monkeypatch.setattr(name, failing_at(3, real, ZeroDivisionError("of somebody else")))
    with pytest.raises(ZeroDivisionError):
        train_ensemble(config)
    monkeypatch.setattr(name, real)

    assert "steps so far are in" in capsys.readouterr().err
    train_ensemble(config, resume=True)
    assert_same_adapters(whole, config)


def test_a_step_that_was_taken_in_part_is_not_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = write_config(tmp_path, save_steps=1)
    name, error = "softspec.train.loop.step._losses", ZeroDivisionError("after the optimizer")
    monkeypatch.setattr(name, failing_at(3, resolve_name(name), error))

    with pytest.raises(ZeroDivisionError):
        train_ensemble(config)

    assert torch.load(tmp_path / "ensemble.partial" / "checkpoint.pt", weights_only=True)["step"] == 2


def test_a_run_that_diverged_leaves_nothing_to_go_on_from(tmp_path: Path) -> None:
    config = write_config(tmp_path, learning_rate=1e30, max_grad_norm=0, max_steps=8)

    with pytest.raises(DivergedError):
        train_ensemble(config)

    assert not (tmp_path / "ensemble.partial" / "checkpoint.pt").exists()


class Nobody(io.StringIO):
    """A stream whose reader has left."""

    def write(self, text: str) -> int:
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    def flush(self) -> None:
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")


@pytest.mark.parametrize("stream", [Nobody(), None], ids=["a reader who left", "no stream"])
def test_output_that_nobody_reads_does_not_end_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stream: Any
) -> None:
    write_config(tmp_path, eval_file="train.jsonl", eval_steps=2, early_stopping_patience=5)
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(sys, "stdout", stream)

    code = main(["train", str(tmp_path / "config.yaml")])

    assert code == 0
    assert (tmp_path / "ensemble" / "ensemble.json").is_file()


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
