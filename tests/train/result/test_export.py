"""Export: what is written is what was trained, and a damaged directory is noticed."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from softspec.artefact.activation import AlwaysActivation
from softspec.artefact.manifest import BaseModelRef, Manifest, load_manifest, member_dir
from softspec.errors import ManifestError, TrainingError
from softspec.maths.mixture import uniform_log_weights
from softspec.train.members.load import ADAPTER_WEIGHTS, load_members
from softspec.train.members.members import Members
from softspec.train.result.export import check_reload, publish, write_ensemble
from tests.support.tiny import random_adapters, tiny_llama
from tests.support.tiny_training import random_examples, tiny_members


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
