"""Small trained models of small questions, and the packages beside the environment."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from softspec.app.baselines.beside import FOLDER, beside
from softspec.app.baselines.run import OfSeed, Plan, plan_of, run_baselines
from softspec.errors import ConfigError
from tests.support.tiny_training import write_config, write_rows

ANSWERS = ("red", "blue", "green")
STEPS = 6


def asked(number: int) -> str:
    return f"Question {number}: what is the agreed colour of it?"


def training_rows(count: int = 24) -> list[dict[str, Any]]:
    """Questions with one of three answers; every eighth is answered otherwise."""
    rows = []
    for number in range(count):
        answer = ANSWERS[(number % 3 + (number % 8 == 7)) % 3]
        turns = [{"role": "user", "content": asked(number % 12)}, {"role": "assistant", "content": answer}]
        rows.append({"messages": turns, "source": "AB"[number % 2]})
    return rows


def choice_rows(count: int = 12) -> list[dict[str, Any]]:
    """The same questions as choices, in another order of the answers every second time."""
    return [
        {
            "messages": [{"role": "user", "content": asked(number)}],
            "choices": list(ANSWERS if number % 2 else reversed(ANSWERS)),
            "answer": ANSWERS[number % 3],
        }
        for number in range(count)
    ]


def plan_in(folder: Path, rows: Sequence[dict[str, Any]] | None = None, **asked_for: Any) -> Plan:
    """What is asked for of a run of two members in `folder`."""
    config = write_config(folder, max_steps=STEPS)
    write_rows(folder / "train.jsonl", training_rows())
    data = folder / "rows.jsonl"
    lines = (json.dumps(row) + "\n" for row in (choice_rows() if rows is None else rows))
    data.write_text("".join(lines), encoding="utf-8")
    return plan_of(config, data, folder / "table", **asked_for)


@pytest.fixture(scope="package")
def packages() -> None:
    """laplace-torch and lm-polygraph."""
    try:
        beside("laplace")
    except ConfigError:
        pytest.fail(f"no {FOLDER}: run these tests with 'make test', or 'make baselines' before")


@pytest.fixture(scope="package")
def finished(packages: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Plan, OfSeed]:
    """All baselines of choices, of one seed."""
    plan = plan_in(tmp_path_factory.mktemp("baselines"), dropout=0.2, samples=3)
    (found,) = run_baselines(plan)
    return plan, found
