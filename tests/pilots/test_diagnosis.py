"""Does `softspec diagnose` say what is true? The pilot's data and base, where what members do is known."""

import random
from pathlib import Path
from typing import Any

import pytest

from softspec.app.demo.facts import ask, invent_things, write_rows
from softspec.train.config import parse_config
from softspec.train.diagnosis.findings import Findings
from softspec.train.diagnosis.story import Plan, ProbeName, diagnose
from softspec.train.diagnosis.words import advise
from tests.pilots.base import TRAINING, write_base
from tests.pilots.facts import write_statements

pytestmark = [pytest.mark.slow, pytest.mark.pilot]
HABITS = {"a": (0.7, 0.2, 0.1), "b": (0.1, 0.7, 0.2), "c": (0.2, 0.1, 0.7), "d": (0.33, 0.34, 0.33)}
"""Worth 0.22 nats a rating."""


def findings(base: Path, data: Path, probes: tuple[ProbeName, ...], steps: int, **settings: Any) -> Findings:
    content = {
        **TRAINING,
        "base_model": str(base),
        "train_file": "train.jsonl",
        "eval_file": "held_out.jsonl",
        "output_dir": "run",
        "max_steps": 600,
        **settings,
    }
    config = parse_config(content, source="pilot", folder=data)
    return diagnose(Plan(config, probes=probes, steps=steps, rows=120))


@pytest.mark.parametrize("seed", [0, 1])
def test_contradictory_statements_pay_from_the_order_at_which_members_really_part(
    seed: int, tmp_path: Path
) -> None:
    """In the pilot's table nothing happens at 0.3, and from 0.5 on members follow one source each."""
    things = invent_things(seed, 24, 24, 24)
    write_statements(tmp_path / "data", things, seed)

    found = findings(write_base(tmp_path / "base", things, seed), tmp_path / "data", ("sources",), 150)

    assert found.sources
    assert found.sources.pays(0.5, 1)
    assert found.sources.pays(0.8, 1)
    assert not found.sources.pays(0.3, 1)
    assert advise(found).verdict == "pays"


@pytest.mark.parametrize("seed", [0, 1])
def test_of_sources_that_agree_one_adapter_is_enough(seed: int, tmp_path: Path) -> None:
    things = invent_things(seed, 48, 0, 24)
    write_statements(tmp_path / "data", things, seed)

    found = findings(write_base(tmp_path / "base", things, seed), tmp_path / "data", ("sources",), 150)

    assert advise(found).verdict == "one_adapter"


@pytest.mark.parametrize("seed", [0, 1])
def test_ratings_of_annotators_need_more_than_four_in_a_group(seed: int, tmp_path: Path) -> None:
    things, rng = invent_things(seed, 24, 24, 24), random.Random(seed)
    (tmp_path / "data").mkdir()
    for name, count in (("train.jsonl", 800), ("held_out.jsonl", 60)):
        rows = [_rating(rng, things, annotator) for _ in range(count) for annotator in HABITS]
        write_rows(tmp_path / "data" / name, rows)
    base = write_base(tmp_path / "base", things, seed)

    found = findings(base, tmp_path / "data", ("sources",), 60, granularity="group", group_rows=4)
    advice = advise(found)

    assert found.sources
    assert found.sources.mean.low < 0.22 < found.sources.mean.high + 0.1
    assert advice.verdict == "too_few_rows"
    assert advice.settings["group_rows"] in (8, 16, 32)


def _rating(rng: random.Random, things: Any, annotator: str) -> dict[str, Any]:
    (word,) = rng.choices(("red", "blue", "green"), HABITS[annotator])
    turns = [{"role": "user", "content": ask(rng.sample(things, 4))}, {"role": "assistant", "content": word}]
    return {"messages": turns, "source": annotator, "group": annotator}
