"""Splits and configurations: honoured where there are some, refused where the choice would be ignored."""

from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, DatasetDict

from softspec.errors import ConfigError
from softspec.train.data.choices import check_choices
from softspec.train.data.overlap import Overlap
from softspec.train.data.units import Example, Preference
from softspec.train.run import read_data
from tests.support.tiny_training import chat_rows, config_of_no_files, write_config, write_rows


@pytest.fixture
def places(tmp_path: Path) -> dict[str, str]:
    """Data of every kind, by what they are called in the cases."""
    rows = Dataset.from_list(chat_rows(2))
    write_rows(tmp_path / "rows.jsonl", chat_rows(2))
    rows.to_parquet(tmp_path / "rows.parquet")
    rows.save_to_disk(tmp_path / "saved")
    DatasetDict({"train": rows, "dev": rows}).save_to_disk(tmp_path / "splits")
    names = ("rows.jsonl", "rows.parquet", "saved", "splits")
    return {name: str(tmp_path / name) for name in names} | {"owner/name": "owner/name"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"train_file": "rows.jsonl", "dataset_train_split": "train[:90%]"},
            "dataset_train_split is 'train[:90%]'",
        ),
        (
            {"train_file": "rows.jsonl", "dataset_train_split": "test"},
            "rows.jsonl' has no splits; leave it out",
        ),
        ({"train_file": "rows.parquet", "dataset_train_split": "dev"}, "has no splits; leave it out"),
        ({"train_file": "saved", "dataset_train_split": "dev"}, "saved' has no splits"),
        (
            {"train_file": "splits", "eval_file": "rows.jsonl", "dataset_test_split": "train[90%:]"},
            "dataset_test_split is 'train[90%:]', but eval_file",
        ),
        ({"train_file": "splits", "dataset_test_split": "dev"}, "but there is no eval_file; leave it out"),
        (
            {"train_file": "rows.jsonl", "dataset_config": "small"},
            "dataset_config is 'small', but files have no",
        ),
        ({"train_file": "saved", "eval_file": "rows.jsonl", "dataset_config": "x"}, "leave it out"),
    ],
)
def test_a_choice_that_would_be_ignored_is_refused(
    places: dict[str, str], settings: dict[str, Any], message: str
) -> None:
    found = {key: places.get(value, value) for key, value in settings.items()}

    with pytest.raises(ConfigError) as error:
        check_choices(config_of_no_files(**found))

    assert message in str(error.value)


@pytest.mark.parametrize(
    "settings",
    [
        {"train_file": "rows.jsonl", "eval_file": "rows.parquet"},
        {"train_file": "splits", "eval_file": "splits", "dataset_test_split": "dev"},
        {"train_file": "owner/name", "dataset_train_split": "train[:90%]", "dataset_config": "small"},
        {"train_file": "owner/name", "eval_file": "rows.jsonl", "dataset_config": "small"},
    ],
)
def test_a_choice_with_a_meaning_stands(places: dict[str, str], settings: dict[str, Any]) -> None:
    check_choices(config_of_no_files(**{key: places.get(value, value) for key, value in settings.items()}))


def test_held_out_examples_that_are_trained_on_are_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_config(tmp_path, eval_file="eval.jsonl")
    write_rows(tmp_path / "eval.jsonl", [*chat_rows(12)[:2], {"prompt": "2 + 2 =", "completion": " 4"}])

    read_data(config)

    assert "softspec: 2 of 3 held-out examples are in train_file too" in capsys.readouterr().err


def test_a_choice_without_a_meaning_ends_a_run_before_anything_is_read(tmp_path: Path) -> None:
    config = write_config(tmp_path, train_file="train.jsonl", dataset_train_split="train[:90%]")

    with pytest.raises(ConfigError, match="has no splits"):
        read_data(config)


def test_a_preference_is_shared_only_with_both_its_completions_in_their_order() -> None:
    first, second, third = (Example((1,), (number,)) for number in (2, 3, 4))
    overlap = Overlap()

    list(overlap.training([Preference(first, second)]))
    list(overlap.evaluation([Preference(first, second), Preference(second, first), Preference(first, third)]))

    assert (overlap.shared, overlap.held_out) == (1, 3)
