"""Does selection find the truth? One adapter, or alpha 0, where sources agree; specialists where they contradict.

The second once on one seed and a short grid, and (`pytest tests/pilots/test_selection.py -m pilot -s`) both on three
seeds and the whole grid, with what each selection came to; annotators of two tastes too.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from softspec.app.demo.facts import invent_things
from softspec.train.config import parse_config
from softspec.train.selection.plan import Wanted
from softspec.train.selection.select import select_ensemble
from softspec.train.selection.table import told
from tests.pilots import tastes
from tests.pilots.base import TRAINING, write_base
from tests.pilots.facts import write_statements

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Size:
    """Of an experiment: its seed, the steps of one configuration, and what is tried."""

    seed: int
    steps: int
    wanted: Wanted


QUICK = pytest.param(Size(0, 200, Wanted(alphas=(0.0, 0.8), members=(2,))), id="quick")
SEEDS = [
    pytest.param(
        Size(seed, 200, Wanted()), id=f"seed {seed}", marks=[pytest.mark.pilot, pytest.mark.timeout(7200)]
    )
    for seed in range(3)
]


def on_statements(folder: Path, size: Size, agreed: int, conflict: int) -> dict[str, Any]:
    """The journal of a selection on statements of two sources."""
    write_statements(folder / "data", invent_things(size.seed, agreed, conflict, 24), size.seed)
    return selected(folder, size, f"{agreed} things agreed on, {conflict} not")


def selected(folder: Path, size: Size, what: str, **settings: Any) -> dict[str, Any]:
    """The journal of a selection on the rows in `folder`, which is printed too."""
    base = write_base(folder / "base", invent_things(size.seed, 24, 24, 24), size.seed)
    content = {
        **TRAINING,
        "seed": size.seed,
        "base_model": str(base),
        "train_file": "train.jsonl",
        "eval_file": "held_out.jsonl",
        "output_dir": "ensemble",
        "max_steps": size.steps,
        **settings,
    }
    _, journal = select_ensemble(parse_config(content, "pilot", folder / "data"), size.wanted)
    print(f"\nseed {size.seed}, {what}\n{told(journal)}")
    return journal


@pytest.mark.parametrize("size", [QUICK, *SEEDS])
def test_sources_that_contradict_each_other_get_specialists(tmp_path: Path, size: Size) -> None:
    journal = on_statements(tmp_path, size, agreed=24, conflict=24)

    assert journal["chosen"]["num_members"] > 1
    assert journal["chosen"]["renyi_alpha"] >= 0.5
    assert journal["final"]["gain"]["low"] > 0


@pytest.mark.parametrize("size", SEEDS)
def test_sources_that_agree_get_one_adapter_or_independent_ones(tmp_path: Path, size: Size) -> None:
    journal = on_statements(tmp_path, size, agreed=48, conflict=0)

    assert journal["chosen"]["num_members"] == 1 or journal["chosen"]["renyi_alpha"] == 0


@pytest.mark.parametrize("size", SEEDS)
def test_annotators_of_two_tastes_get_specialists(tmp_path: Path, size: Size) -> None:
    """Preferences that are routed by annotator; the score is the likelihood of four of one annotator together."""
    tastes.write_judgements(tmp_path / "data", invent_things(size.seed, 24, 24, 24), size.seed)

    settings = {**tastes.TRAINING, "granularity": "group"}
    journal = selected(tmp_path, size, "annotators of two tastes", **settings)

    assert journal["chosen"]["num_members"] > 1
    assert journal["chosen"]["renyi_alpha"] >= 0.5
