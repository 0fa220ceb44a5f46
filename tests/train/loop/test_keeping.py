"""Runs that keep what is frozen: the same gradients and members as without, told in a line, bounded, and shared."""

from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from softspec.artefact.cache import cache_folder
from softspec.train.loop.state import Training
from softspec.train.members.frozen import Frozen
from softspec.train.members.kept import Kept
from softspec.train.run import train_ensemble
from tests.support.tiny_training import write_config
from tests.support.training_runs import assert_same_adapters, logged_losses
from tests.train.loop.test_passes import assert_equal, exact, gradients, grouped, preferring

KINDS = {"completions": exact, "preferences": preferring, "groups": grouped}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOFTSPEC_CACHE", str(tmp_path / "cache"))


@pytest.mark.slow
@pytest.mark.parametrize("active_members", [3.0, 0.0], ids=["one pass", "two passes"])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_a_run_that_keeps_nothing(
    tmp_path: Path, kind: str, active_members: float
) -> None:
    settings = {"micro_batch_size": 5, "layers_to_transform": [1], "gradient_checkpointing": kind == "groups"}
    build: Callable[..., Training] = KINDS[kind]
    training = build(tmp_path, activation={"kind": "block", "block_size": 8}, **settings)
    expected, done = gradients(training, active_members)
    members = training.members
    members.frozen = Frozen(members.model, 1, Kept(cache_folder("frozen")), "base")

    found, kept = gradients(training, active_members)

    assert_equal(found, expected)
    assert kept.loglik.allclose(done.loglik, rtol=1e-9, atol=1e-9)
    assert any(cache_folder("frozen").glob("*/*"))


@pytest.mark.slow
def test_later_runs_read_what_the_first_one_computed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings: dict[str, Any] = {"layers_to_transform": [1], "eval_file": "train.jsonl", "b_init_std": 0.1}
    first = write_config(tmp_path, output_dir="first", **settings)
    train_ensemble(first)
    told = capsys.readouterr().err
    second = write_config(tmp_path, output_dir="second", renyi_alpha=0.8, **settings)
    without = write_config(tmp_path, output_dir="without", frozen_cache_gb=0.0, **settings)

    with patch.object(Frozen, "compute", autospec=True, side_effect=Frozen.compute) as compute:
        train_ensemble(second)
    train_ensemble(without)

    assert compute.call_count == 1, "what a token takes"
    assert_same_adapters(first, second)
    assert logged_losses(first) == pytest.approx(logged_losses(without), rel=1e-4)
    assert "computed once per example" in told
    assert str(cache_folder("frozen")) in told


def test_more_than_the_limit_is_computed_in_every_step(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train_ensemble(write_config(tmp_path, frozen_cache_gb=1e-6, max_steps=1))

    assert (
        "computed in every step: kept, it would take more than frozen_cache_gb 1e-06"
        in capsys.readouterr().err
    )
    assert not cache_folder("frozen").exists()


def test_half_of_the_disk_stays_free(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with patch("softspec.train.loop.keeping._free", return_value=1000):
        train_ensemble(write_config(tmp_path, max_steps=1))

    assert "GB that are free" in capsys.readouterr().err
    assert not cache_folder("frozen").exists()
