"""Export: what is written is what was trained, and a damaged directory is noticed."""

import errno
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from softspec.app.cli.main import main
from softspec.artefact.activation import AlwaysActivation
from softspec.artefact.manifest import BaseModelRef, Manifest, load_manifest, member_dir
from softspec.errors import ManifestError, TrainingError
from softspec.maths.mixture import uniform_log_weights
from softspec.train.members.load import ADAPTER_WEIGHTS, load_members
from softspec.train.members.members import Members
from softspec.train.result.export import check_reload, publish, write_ensemble
from tests.support.tiny import random_adapters, tiny_llama
from tests.support.tiny_training import random_examples, tiny_members, write_config


def written(directory: Path) -> tuple[Path, Members]:
    """Two random members and their ensemble directory."""
    members = tiny_members(directory / "base", num_members=2)
    manifest = Manifest(
        name="pair",
        base_model=BaseModelRef(path=str(directory / "base")),
        num_members=2,
        log_weights=tuple(uniform_log_weights(2).tolist()),
        renyi_alpha=1,
    )
    write_ensemble(directory / "ensemble", members, manifest)
    return directory / "ensemble", members


def test_written_members_reload_through_stock_peft_to_the_same_scores(tmp_path: Path) -> None:
    directory, members = written(tmp_path)

    gap = check_reload(directory, members, random_examples(), AlwaysActivation())

    assert gap < 1e-5
    assert load_manifest(directory).name == "pair"


def test_an_adapter_that_is_not_what_was_trained_is_noticed(tmp_path: Path) -> None:
    directory, members = written(tmp_path)
    path = member_dir(directory, 1) / ADAPTER_WEIGHTS
    save_file(
        {name: weight * 1.01 for name, weight in load_file(path).items()}, path, metadata={"format": "pt"}
    )

    with pytest.raises(TrainingError, match=r"adapters reloaded from .* differ by"):
        check_reload(directory, members, random_examples(), AlwaysActivation())


def test_the_reload_check_leaves_the_members_in_place(tmp_path: Path) -> None:
    directory, members = written(tmp_path)

    gaps = [check_reload(directory, members, random_examples(), AlwaysActivation()) for _ in range(2)]

    assert gaps[0] == gaps[1]


def test_loading_brings_back_every_weight(tmp_path: Path) -> None:
    directory, members = written(tmp_path)

    loaded = load_members(directory, AutoModelForCausalLM.from_pretrained(tmp_path / "base"))

    for (name, ours), (_, theirs) in zip(members.named_weights(), loaded.named_weights(), strict=True):
        assert torch.equal(ours, theirs), name


def test_an_ensemble_of_another_base_is_refused(tmp_path: Path) -> None:
    ensemble = random_adapters(tiny_llama(tmp_path / "base"), tmp_path / "ensemble", num_members=2)
    wider = AutoModelForCausalLM.from_pretrained(tiny_llama(tmp_path / "wider", hidden=64))

    with pytest.raises(ManifestError, match="member-0' does not fit the base model"):
        load_members(ensemble, wider)


def test_publishing_replaces_the_older_ensemble_whole(tmp_path: Path) -> None:
    for name in ("new", "out"):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}.txt").touch()

    publish(tmp_path / "new", tmp_path / "out")

    assert [path.name for path in (tmp_path / "out").iterdir()] == ["new.txt"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_older_ensemble_stays_where_publishing_fails(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "out.txt").touch()

    with pytest.raises(FileNotFoundError):
        publish(tmp_path / "missing", tmp_path / "out")

    assert [path.name for path in tmp_path.rglob("*")] == ["out", "out.txt"]


def test_publishing_leaves_what_an_earlier_crash_left(tmp_path: Path) -> None:
    """Even where the process number is the same again, as in a container."""
    for name in ("new", "out", f".out.retired-{os.getpid()}"):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}.txt").touch()

    publish(tmp_path / "new", tmp_path / "out")

    assert (tmp_path / f".out.retired-{os.getpid()}" / f".out.retired-{os.getpid()}.txt").exists()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["new.txt"]


def unreadable(*_: object) -> float:
    """What PEFT may say of an adapter."""
    raise RuntimeError("size mismatch")


def doubtful(*_: object) -> float:
    """What the check says of one that came to other numbers."""
    raise TrainingError("adapters reloaded from 'x' differ by 0.04 nats, expected 0.03")


@pytest.mark.parametrize(
    ("check", "said"), [(doubtful, "differ by 0.04 nats"), (unreadable, "size mismatch")]
)
def test_a_result_that_does_not_reload_is_written_all_the_same(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    check: Callable[..., float],
    said: str,
) -> None:
    config = write_config(tmp_path)
    monkeypatch.setattr("softspec.train.result.ending.check_reload", check)

    code = main(["train", str(tmp_path / "config.yaml")])

    assert code == 1
    *_, line = capsys.readouterr().err.splitlines()
    assert said in line
    assert f"it was written to '{config.output_dir}' all the same" in line
    assert load_manifest(config.output_dir).training["steps"] == 4
    assert not (tmp_path / "ensemble.partial").exists()


@pytest.mark.parametrize(
    "error",
    [OSError(errno.ENOSPC, "No space left on device"), SafetensorError("No space left on device")],
    ids=["system", "safetensors"],
)
def test_an_ensemble_without_room_is_one_line_and_can_be_written_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception
) -> None:
    write_config(tmp_path)

    def full(*_: object, **__: object) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr("softspec.train.result.export.save_file", full)
        code = main(["train", str(tmp_path / "config.yaml")])

    assert code == 2
    *_, line = capsys.readouterr().err.splitlines()
    assert re.search(
        r"cannot write '.*': No space left on device \(\d+\.\d MB are free\); make room and go on with --resume",
        line,
    )
    assert main(["train", str(tmp_path / "config.yaml"), "--resume"]) == 0
