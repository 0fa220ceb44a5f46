"""What of a configuration each baseline changes, and what it keeps."""

from pathlib import Path
from typing import Any

import pytest

from softspec.app.baselines.variants import NAMES, Noise, needed, variant
from softspec.errors import ConfigError
from softspec.train.config import TrainConfig
from tests.support.tiny_training import config_of_no_files

NOISE = Noise(0.1, 4)


def changes(config: TrainConfig, name: str) -> dict[str, Any]:
    """The keys that a baseline has otherwise, but for its place, its name and its seed."""
    found = variant(config, name, 7, NOISE, Path("out")).model_dump()
    assert found.pop("seed") == 7
    assert (found.pop("output_dir"), found.pop("name")) == (Path("out") / name, name)
    return {key: value for key, value in found.items() if value != config.model_dump()[key]}


def test_each_baseline_changes_what_it_is_about_and_nothing_else() -> None:
    config = config_of_no_files(num_members=4, lora_r=8, lora_alpha=12, max_steps=50)

    assert changes(config, "ensemble") == {}
    assert changes(config, "single") == {"num_members": 1}
    assert changes(config, "wide") == {"num_members": 1, "lora_r": 32, "lora_alpha": 48, "max_steps": 200}
    assert changes(config, "independent") == {"renyi_alpha": 0}
    assert changes(config, "dropout") == {"num_members": 1, "lora_dropout": 0.1}
    assert changes(config, "alpha-0.5") == {"renyi_alpha": 0.5}


def test_epochs_are_multiplied_where_they_decide_the_steps() -> None:
    assert changes(config_of_no_files(num_members=3, num_epochs=2.0), "wide")["num_epochs"] == 6


def test_what_is_about_sharing_examples_is_off_where_none_are_shared() -> None:
    """The order of examples, and so `granularity`, stays."""
    config = config_of_no_files(
        granularity="group", responsibility_floor=0.1, weights_learning_rate=0.1, weights_floor=0.2
    )

    off = {"responsibility_floor": 0.0, "weights_learning_rate": 0.0, "weights_floor": 0.1}
    assert changes(config, "independent") == {**off, "renyi_alpha": 0}
    assert changes(config, "single") == {**off, "num_members": 1}


def test_a_rank_that_nothing_loads_is_refused_with_what_to_do() -> None:
    with pytest.raises(
        ConfigError, match=r"'wide' has lora_r 1024, 4 times .* 512 .* leave it out with --only"
    ):
        variant(config_of_no_files(num_members=4, lora_r=256), "wide", 0, NOISE, Path("out"))


@pytest.mark.parametrize("granularity", ["sequence", "group"])
def test_a_step_sees_as_many_examples_as_one_of_the_ensemble(granularity: str) -> None:
    config = TrainConfig.model_validate(
        {"base_model": "x", "train_file": "t", "output_dir": Path("o"), "granularity": granularity}
    )

    for name in needed(NAMES):
        assert variant(config, name, 0, NOISE, Path("out")).examples_per_step == config.examples_per_step


def test_only_what_is_asked_for_is_trained() -> None:
    assert needed(NAMES) == ("ensemble", "single", "wide", "independent", "dropout")
    assert needed(("base", "temperature")) == ("ensemble",)
    assert needed(("laplace",)) == needed(("polygraph",)) == ("ensemble", "single")
