"""What does it cost to adapt the top layers only, of which the engine computes those below once for all members?

As many trained weights and optimizer steps in each placement: half the layers have twice the rank. `pytest
tests/pilots/test_placement.py -m pilot -s` prints the tables of train/recipes/RESULTS.md.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from softspec.app.baselines.training import cost_of
from softspec.app.demo.facts import invent_things
from softspec.app.demo.settings import RECIPE, DemoSettings
from softspec.app.demo.story import Demo
from softspec.artefact.manifest import load_manifest
from tests.pilots.base import write_base
from tests.pilots.facts import train_on_statements, write_statements
from tests.pilots.table import print_table

pytestmark = [pytest.mark.slow, pytest.mark.pilot, pytest.mark.timeout(7200)]

SEEDS = (0, 1, 2)
PLACEMENTS: Mapping[str, int] = {"top third": 3, "top half": 2, "all": 1}
"""Which part of the layers has adapters, as one in so many."""
RANK = 4
"""With adapters in all layers; the others have it times their number in `PLACEMENTS`."""


@dataclass(frozen=True)
class Placed:
    """Nats: per held-out statement of four facts (`nll`), per thing (`mi`); `seconds` of the optimizer steps."""

    base_nll: float
    mixture_nll: float
    member_nll: float
    mi_agreed: float
    mi_conflict: float
    auroc_conflict: float
    soft_source_mi: float
    seconds: float


def adapters(part: int, layers: int, scaling: int) -> dict[str, Any]:
    """The settings of adapters in the top `part`-th of the layers, which count `scaling` times."""
    return {
        "layers_to_transform": list(range(layers - layers // part, layers)),
        "lora_r": RANK * part,
        "lora_alpha": RANK * part * scaling,
    }


def test_what_placement_costs_on_a_small_transformer(tmp_path: Path) -> None:
    """The contradictory facts of the acceptance test and its settings, on a Llama of six layers."""
    found: dict[str, list[Placed]] = {name: [] for name in PLACEMENTS}
    for seed in SEEDS:
        things, data = invent_things(seed, 24, 24, 24), tmp_path / str(seed)
        base = write_base(tmp_path / f"base-{seed}", things, seed, layers=6)
        write_statements(data, things, seed)
        for name, part in PLACEMENTS.items():
            settings = {**adapters(part, 6, scaling=2), "renyi_alpha": 0.8, "max_steps": 600}
            outcome = train_on_statements(base, data, things, seed, **settings)
            found[name].append(Placed(**{key: getattr(outcome, key) for key in Placed.__annotations__}))
    print_table("Six layers, 600 steps of 16", found)
    assert all(each.mixture_nll < each.base_nll for outcomes in found.values() for each in outcomes)
    everywhere, above = ([each.mixture_nll for each in found[name]] for name in ("all", "top third"))
    assert max(everywhere) < min(above), "the price that RESULTS.md tells of"


@pytest.mark.model
def test_what_placement_costs_on_a_language_model(tmp_path: Path) -> None:
    """The demo's data and recipe, in a third of its steps, which are half as large."""
    found: dict[str, list[Placed]] = {name: [] for name in PLACEMENTS}
    for seed in SEEDS:
        for name, part in PLACEMENTS.items():
            recipe = {**RECIPE, **adapters(part, 30, scaling=8), "micro_batch_size": 4}
            settings = DemoSettings(seed=seed, train_examples=160, held_out_examples=80, recipe=recipe)
            found[name].append(trained_demo(tmp_path / f"{name}-{seed}", settings))
    print_table("SmolLM2-135M-Instruct, 40 steps of 4", found)
    assert all(each.mixture_nll < each.base_nll for outcomes in found.values() for each in outcomes)


def trained_demo(folder: Path, settings: DemoSettings) -> Placed:
    """What the demo measures of its ensemble, without serving it."""
    demo = Demo(folder, settings)
    demo.train("ensemble")
    demo.measure("ensemble")
    scores, disagreement = demo.results["held_out"], demo.results["disagreement_tests"]["ensemble"]
    return Placed(
        base_nll=scores["base"]["nll"],
        mixture_nll=scores["ensemble"]["nll"],
        member_nll=load_manifest(folder).held_out["member_nll"],
        mi_agreed=disagreement["mutual_information"]["agreed"],
        mi_conflict=disagreement["mutual_information"]["conflict"],
        auroc_conflict=disagreement["auroc_conflict"],
        soft_source_mi=disagreement["soft_source_mi"],
        seconds=cost_of(folder).seconds,
    )
