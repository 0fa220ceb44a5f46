"""What is trained and scored, what is found again, what is refused, and what it cost."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

import softspec.app.baselines.run as story
import softspec.app.baselines.training as training
from softspec.app.baselines.compare import compared, table
from softspec.app.baselines.run import OfSeed, Plan, plan_of, run_baselines
from softspec.app.cli.main import main
from softspec.artefact.manifest import load_manifest, member_dir
from softspec.errors import ConfigError, Interrupted
from softspec.evaluation.judge import Asked
from softspec.evaluation.records import read_header, read_records
from tests.app.baselines.conftest import STEPS, plan_in
from tests.support.tiny_training import write_rows
from tests.support.training_runs import signal_in_step

pytestmark = pytest.mark.slow

MODELS = ["ensemble", "base", "single", "wide", "independent", "dropout", "laplace"]


def test_every_baseline_is_there_and_once_more_with_a_temperature(finished: tuple[Plan, OfSeed]) -> None:
    _, found = finished

    assert [model.name for model in found.models] == [*MODELS, *(f"{name}+temperature" for name in MODELS)]
    assert found.left_out == {
        "polygraph": "judges answers that are generated: needs rows with reference answers"
    }
    headers = [read_header(model.scores) for model in found.models]
    assert [header.model for header in headers] == [model.name for model in found.models]
    assert [header.num_members for header in headers] == [2, 1, 1, 1, 2, 3, 3] + [1] * 7


def test_one_adapter_is_the_first_of_the_independent_ones(finished: tuple[Plan, OfSeed]) -> None:
    """The same start, the same examples and, at alpha 0, the same gradient: K independent members are K such runs."""
    _, found = finished

    for single, independent in zip(
        read_records(found.scores_of("single")), read_records(found.scores_of("independent")), strict=True
    ):
        assert independent.member_log_probs[0] == pytest.approx(single.log_probs, rel=1e-3, abs=1e-3)
        assert independent.member_log_probs[1] != pytest.approx(single.log_probs, rel=1e-2)


def test_costs_are_members_times_steps_and_weights_times_members(finished: tuple[Plan, OfSeed]) -> None:
    _, found = finished
    costs = {model.name: model.cost for model in found.models}
    one = costs["single"].parameters

    steps = {name: costs[name].adapter_steps for name in MODELS}
    assert steps == {
        "ensemble": 2 * STEPS,
        "base": 0,
        "single": STEPS,
        "wide": 2 * STEPS,
        "independent": 2 * STEPS,
        "dropout": STEPS,
        "laplace": STEPS,
    }
    assert [costs[name].parameters / one for name in MODELS] == [2, 0, 1, 2, 2, 1, 1]
    assert [costs[name].passes for name in MODELS] == [2, 1, 1, 1, 2, 3, 1]
    assert costs["wide"].seconds > 0


def test_what_is_finished_is_neither_trained_nor_scored_again(finished: tuple[Plan, OfSeed]) -> None:
    plan, found = finished
    with (
        patch.object(training, "train_ensemble", side_effect=AssertionError("trained again")),
        patch("softspec.app.baselines.scoring.score", side_effect=AssertionError("scored again")),
        patch.object(story, "last_layer_records", side_effect=AssertionError("fitted again")),
    ):
        (again,) = run_baselines(plan)

    assert again == found


def test_a_run_that_was_stopped_goes_on_where_it_was(tmp_path: Path, finished: tuple[Plan, OfSeed]) -> None:
    """In the midst of a training, and in the midst of a file of scores."""
    plan = plan_in(tmp_path, only=["single"])
    with signal_in_step(STEPS + 3, 15), pytest.raises(Interrupted, match=r"'single' of seed 0 .* goes on"):
        run_baselines(plan)
    ensemble = plan.folder / "seed-0" / "ensemble" / "ensemble.json"
    before = ensemble.stat().st_mtime_ns

    (found,) = run_baselines(plan)
    scores = found.scores_of("single")
    whole = scores.read_text()
    scores.write_text("".join(whole.splitlines(keepends=True)[:4]) + '{"row": 3, "for')
    (again,) = run_baselines(plan)

    expected = finished[1].scores_of("single").read_text()
    assert ensemble.stat().st_mtime_ns == before
    assert again.scores_of("single").read_text() == whole
    assert whole.splitlines()[1:] == expected.splitlines()[1:]


def test_an_ensemble_that_was_trained_already_is_taken(tmp_path: Path, finished: tuple[Plan, OfSeed]) -> None:
    plan = plan_in(tmp_path, only=["base"])
    shutil.copytree(finished[0].folder / "seed-0" / "ensemble", plan.config.output_dir)

    with patch.object(training, "train_ensemble", side_effect=AssertionError("trained again")):
        (found,) = run_baselines(plan)

    assert not (plan.folder / "seed-0" / "ensemble").exists()
    assert [model.name for model in found.models] == ["ensemble", "base"]


def test_what_changed_is_refused_before_anything_is_trained(
    finished: tuple[Plan, OfSeed], tmp_path: Path
) -> None:
    plan = replace(finished[0], folder=tmp_path / "table")
    shutil.copytree(finished[0].folder, plan.folder)
    other_rate = replace(plan, config=plan.config.model_copy(update={"learning_rate": 0.02}), seeds=(1, 0))
    rows = plan.data.path.with_name("other.jsonl")
    rows.write_text(plan.data.path.read_text().replace("red", "rod"))
    (plan.folder / "seed-0" / f"scores-{rows.stem}").symlink_to(finished[1].scores_of("single").parent)

    with patch.object(training, "train_ensemble", side_effect=AssertionError("trained")):
        with pytest.raises(
            ConfigError, match=r"ensemble' was trained with learning_rate 0.01, not 0.02: name"
        ):
            run_baselines(other_rate)
        with pytest.raises(ConfigError, match=r"has scores of other rows than .*other.jsonl': delete"):
            run_baselines(replace(plan, data=plan_of(plan.config, rows, plan.folder).data))
        train_file = Path(plan.config.train_file)
        kept = train_file.read_text()
        write_rows(train_file, [json.loads(line) for line in kept.splitlines()][1:])
        try:
            with pytest.raises(ConfigError, match="was trained with other rows"):
                run_baselines(plan)
        finally:
            train_file.write_text(kept)


def test_other_draws_are_other_scores(finished: tuple[Plan, OfSeed], tmp_path: Path) -> None:
    plan = replace(finished[0], folder=tmp_path / "table", names=("dropout",))
    shutil.copytree(finished[0].folder, plan.folder)

    with pytest.raises(ConfigError, match=r"dropout.jsonl' has scores of other rows, another model or other"):
        run_baselines(replace(plan, noise=replace(plan.noise, samples=4)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"only": ["deep"]}, "--only is 'deep': expected some of base, single, wide"),
        ({"dropout": 1.0}, "--dropout is 1.0: expected a share"),
        ({"samples": 1}, "--samples and --max-tokens must be at least 2 and 1"),
    ],
)
def test_flags_that_mean_nothing_are_refused(
    finished: tuple[Plan, OfSeed], settings: dict[str, Any], message: str
) -> None:
    plan, _ = finished

    with pytest.raises(ConfigError, match=message):
        plan_of(plan.config, plan.data.path, plan.folder, **settings)


def test_the_table_has_a_line_for_each_model_with_paired_differences(
    finished: tuple[Plan, OfSeed],
) -> None:
    plan, found = finished

    document = compared(plan, [found], Asked(draws=50))
    shown = table(document)

    of_seed = document["seeds"]["0"]
    assert set(of_seed["baselines"]) == {model.name for model in found.models} - {"ensemble"}
    nll = {name: of_model["metrics"]["nll"]["value"] for name, of_model in of_seed["baselines"].items()}
    own = of_seed["metrics"]["nll"]["value"]
    assert document["summary"]["single"]["nll_difference"]["value"] == pytest.approx(nll["single"] - own)
    lines = {line.split()[0]: line for line in shown.splitlines() if line.strip()}
    assert set(lines) >= {model.name for model in found.models}
    assert f"{nll['wide']:.3f}" in lines["wide"]
    assert f"{nll['wide'] - own:+.3f} (" in lines["wide"]
    assert "left out: polygraph, judges answers" in shown
    json.dumps(document, allow_nan=False)


def test_several_seeds_are_a_mean_with_the_smallest_and_largest(finished: tuple[Plan, OfSeed]) -> None:
    plan, found = finished
    other = replace(found, seed=1, models=[replace(model) for model in found.models])
    other.models[0] = replace(other.models[0], scores=found.scores_of("independent"))

    summary = compared(plan, [found, other], Asked(draws=20))["summary"]

    values = [
        compared(plan, [each], Asked(draws=20))["summary"]["ensemble"]["metrics"]["nll"]["value"]
        for each in (found, other)
    ]
    spread = summary["ensemble"]["metrics"]["nll"]
    assert spread["value"] == pytest.approx(sum(values) / 2)
    assert (spread["low"], spread["high"], spread["seeds"]) == (min(values), max(values), 2)


def test_the_command_prints_the_table_and_writes_it(
    finished: tuple[Plan, OfSeed], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan, _ = finished
    config = plan.config.output_dir.parent / "config.yaml"
    output = tmp_path / "table.json"
    flags = ["--only", "base", "single", "--samples", "3", "--bootstrap", "20", "--json", str(output)]
    flags += ["--alphas", "0.25", str(plan.config.renyi_alpha)]  # the second is the ensemble itself

    code = main(["baselines", str(config), str(plan.data.path), "--output-dir", str(plan.folder), *flags])

    assert code == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[1:5]] == [
        "ensemble",
        "alpha-0.25",
        "base",
        "single",
    ]
    assert set(json.loads(output.read_text())["summary"]) == {"ensemble", "alpha-0.25", "base", "single"}
    assert load_manifest(plan.folder / "seed-0" / "alpha-0.25").renyi_alpha == 0.25


def test_names_of_trained_models_are_those_of_the_table(finished: tuple[Plan, OfSeed]) -> None:
    plan, _ = finished
    folder = plan.folder / "seed-0"

    assert load_manifest(folder / "independent").renyi_alpha == 0
    assert load_manifest(folder / "wide").name == "wide"
    assert json.loads((member_dir(folder / "wide", 0) / "adapter_config.json").read_text())["r"] == 8
