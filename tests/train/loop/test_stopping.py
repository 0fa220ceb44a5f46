"""Runs that end once held-out data no longer profit, with the members that served them best."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import softspec.train.run
from softspec.artefact.manifest import load_manifest
from softspec.errors import ConfigError
from softspec.train.loop.stopping import EarlyStopping, MembersState
from softspec.train.run import train_ensemble
from tests.support.tiny_training import chat_rows, write_config, write_rows
from tests.support.training_runs import Killed, assert_same_adapters, dying_at, interrupted, logged

pytestmark = pytest.mark.slow

SETTINGS: dict[str, Any] = {
    "eval_file": "held_out.jsonl",
    "eval_steps": 2,
    "early_stopping_patience": 3,
    "lr_scheduler_type": "constant",
    "warmup_ratio": 0,
    "schedule": "plain",
}


def write_other_answers(folder: Path) -> None:
    """Held-out data in the form of the training data, which contradict them."""
    rows = chat_rows()
    for row in rows:
        row["messages"][-1]["content"] = row["messages"][-1]["content"][::-1]
    write_rows(folder / "held_out.jsonl", rows)


def members_after(step: int) -> MembersState:
    """What stands for the members of this step: no adapters, and its number."""
    return {"weights": [], "log_weights": torch.tensor([float(step)])}


def observed(folder: Path, scores: list[float], **settings: Any) -> EarlyStopping:
    """What early stopping makes of these scores."""
    config = write_config(folder, eval_file="train.jsonl", eval_steps=1, **settings)
    stopping = EarlyStopping(config)
    for step, score in enumerate(scores, start=1):
        assert not stopping.is_over
        stopping.observe(step, score, partial(members_after, step))
    return stopping


def test_patience_counts_evaluations_in_a_row(tmp_path: Path) -> None:
    assert not observed(tmp_path, [3, 2, 2, 1, 2], early_stopping_patience=2).is_over
    assert observed(tmp_path, [3, 2, 2, 1, 2, 1], early_stopping_patience=2).is_over


def test_gains_within_the_threshold_do_not_restore_patience(tmp_path: Path) -> None:
    scores = [3, 2.75, 2.5]

    assert observed(tmp_path, scores, early_stopping_patience=2, early_stopping_threshold=0.25).is_over
    assert not observed(tmp_path, scores, early_stopping_patience=2, early_stopping_threshold=0.2).is_over


def test_the_best_is_the_best_of_all_whatever_the_threshold(tmp_path: Path) -> None:
    stopping = observed(tmp_path, [3, 2.9, 2.95], early_stopping_patience=9, early_stopping_threshold=0.5)

    assert stopping.best_members == members_after(2)
    assert stopping.facts() == {"best_step": 2, "best_mixture_nll": 2.9}


def test_without_patience_nothing_is_kept(tmp_path: Path) -> None:
    stopping = observed(tmp_path, [1, 2, 3, 4])

    assert stopping.best_members is None
    assert stopping.facts() == {}


def test_a_run_ends_early_with_the_members_of_its_best_evaluation(tmp_path: Path) -> None:
    write_other_answers(tmp_path)
    config = write_config(tmp_path, max_steps=60, **SETTINGS)

    train_ensemble(config)

    events, manifest = logged(config), load_manifest(config.output_dir)
    scores = {event["step"]: event["held_out"]["mixture_nll"] for event in events if "held_out" in event}
    best = min(scores, key=lambda step: scores[step])
    last = best + 2 * SETTINGS["early_stopping_patience"]
    assert 2 < best < last < 60
    assert max(event["step"] for event in events) == last
    verdict = {"best_step": best, "best_mixture_nll": scores[best]}
    assert events[-1] == {"step": last, "early_stopping": verdict}
    assert manifest.training.items() >= {"steps": last, **verdict}.items()
    assert manifest.held_out["mixture_nll"] == scores[best]
    short = write_config(
        tmp_path,
        max_steps=best,
        lr_scheduler_type="constant",
        warmup_ratio=0,
        schedule="plain",
        output_dir="short",
    )
    train_ensemble(short)
    assert_same_adapters(short, config)


def test_the_last_step_is_evaluated_too(tmp_path: Path) -> None:
    """Else the members of a run that was too short to stop would not be among those to choose from."""
    config = write_config(tmp_path, **{**SETTINGS, "eval_file": "train.jsonl", "eval_steps": 3})

    train_ensemble(config)

    assert [event["step"] for event in logged(config) if "held_out" in event] == [3, 4]
    assert load_manifest(config.output_dir).training["best_step"] == 4


@pytest.mark.parametrize(
    ("verb", "call"), [("optimizer_step", 12), ("export", 1)], ids=["while it waits", "when it is over"]
)
def test_a_killed_run_ends_as_an_uninterrupted_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str, call: int
) -> None:
    """Best score, waiting time and best members are in the checkpoint."""
    write_other_answers(tmp_path)
    whole = write_config(tmp_path, max_steps=40, output_dir="whole", **SETTINGS)
    train_ensemble(whole)
    best = load_manifest(whole.output_dir).training["best_step"]
    config = write_config(tmp_path, max_steps=40, save_steps=best + 2, **SETTINGS)
    monkeypatch.setattr(f"softspec.train.run.{verb}", dying_at(call, getattr(softspec.train.run, verb)))
    with pytest.raises(Killed):
        train_ensemble(config)
    monkeypatch.undo()

    train_ensemble(config, resume=True)

    assert best + 2 < 12
    assert logged(config) == logged(whole)
    assert_same_adapters(whole, config)


def test_a_run_that_may_stop_early_is_resumed_with_the_same_evaluations(tmp_path: Path) -> None:
    write_other_answers(tmp_path)
    interrupted(tmp_path, **SETTINGS)

    with pytest.raises(ConfigError, match="cannot resume: eval_steps is 1, but the run began with 2"):
        train_ensemble(write_config(tmp_path, max_steps=40, **{**SETTINGS, "eval_steps": 1}), resume=True)


@pytest.mark.parametrize("settings", [{}, {"eval_file": "train.jsonl"}], ids=["no file", "no steps"])
def test_patience_needs_evaluations(tmp_path: Path, settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="early_stopping_patience needs an eval_file and eval_steps"):
        write_config(tmp_path, early_stopping_patience=1, **settings)


def test_a_threshold_needs_patience(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="early_stopping_threshold needs early_stopping_patience"):
        write_config(tmp_path, early_stopping_threshold=0.1)
