"""A template that shows today's date shows the day on which the run began, also when the run goes on later."""

import signal
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from softspec.train import run as story
from softspec.train.config import TrainConfig
from softspec.train.loop.folder import RunFolder
from softspec.train.run import read_data, train_ensemble
from tests.support.tiny import CHATML, tiny_tokenizer
from tests.support.tiny_training import write_config
from tests.support.training_runs import interrupted

DATED = "<|im_start|>system\n{{ strftime_now('%d %b %Y') }}<|im_end|>\n" + CHATML


def dated_run(folder: Path) -> TrainConfig:
    """A run whose base shows the date in every prompt."""
    config = write_config(folder)
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = DATED
    tokenizer.save_pretrained(folder / "base")
    return config


def test_the_day_is_the_one_that_is_given(tmp_path: Path) -> None:
    config = dated_run(tmp_path)

    examples, _ = read_data(config, date(2024, 2, 29))

    prompt = AutoTokenizer.from_pretrained(tmp_path / "base").decode(examples[0].completions[0].prompt_ids)
    assert prompt.startswith("<|im_start|>system\n29 Feb 2024<|im_end|>\n")


@pytest.mark.slow
def test_a_run_that_goes_on_another_day_sees_the_same_prompts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dated_run(tmp_path)
    open_today = story.open_run

    def open_run(*arguments: Any) -> RunFolder:
        """A run that is begun on a day long ago, and goes on today."""
        run = open_today(*arguments)
        if not run.checkpoint.exists():
            run.started_on = date(2020, 1, 2)
        return run

    monkeypatch.setattr(story, "open_run", open_run)
    days: list[date] = []

    def read_and_note(config: TrainConfig, day: date) -> Any:
        days.append(day)
        return read_data(config, day)

    monkeypatch.setattr(story, "read_data", read_and_note)

    train_ensemble(interrupted(tmp_path, signal.SIGINT), resume=True)

    assert days == [date(2020, 1, 2)] * 2
