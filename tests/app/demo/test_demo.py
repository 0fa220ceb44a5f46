"""The demo from data to a report, on a random tiny model; its numbers mean nothing, its structure does."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from softspec.app.demo.facts import invent_things
from softspec.app.demo.report import format_report
from softspec.app.demo.served import ServingSettings, serving
from softspec.app.demo.story import TRAINING, DemoSettings, Stopwatch, run_demo, train_and_measure
from softspec.artefact.manifest import load_manifest
from softspec.errors import ConfigError, EngineError
from tests.support.tiny import random_adapters, tiny_llama

SETTINGS = DemoSettings(
    train_examples=40, held_out_examples=6, max_steps=5, training={**TRAINING, "num_members": 2, "lora_r": 2}
)
THINGS = invent_things(seed=0, agreed=5, conflict=5, unseen=2)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_llama(tmp_path_factory.mktemp("base")))


@pytest.fixture(scope="module")
def trained(base: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """One run with the control, and what it measured."""
    output = tmp_path_factory.mktemp("runs") / "demo"
    settings = replace(SETTINGS, alpha_0=True)
    return output, train_and_measure(output, base, THINGS, settings, Stopwatch())


def test_output_is_an_ensemble_with_its_data_and_the_models_it_was_compared_with(
    trained: tuple[Path, dict[str, Any]],
) -> None:
    output, _ = trained

    assert load_manifest(output).num_members == 2
    assert load_manifest(output / "single").num_members == 1
    assert load_manifest(output / "alpha_0").renyi_alpha == 0
    assert len((output / "train.jsonl").read_text().splitlines()) == 40
    assert len((output / "held_out.jsonl").read_text().splitlines()) == 6
    assert list(output.parent.iterdir()) == [output]


def test_scores_go_into_the_manifest_too(trained: tuple[Path, dict[str, Any]]) -> None:
    output, results = trained

    assert load_manifest(output).held_out["mixture_nll"] == pytest.approx(
        results["held_out"]["ensemble"]["nll"]
    )
    assert load_manifest(output).held_out["base_nll"] == pytest.approx(results["held_out"]["base"]["nll"])


def test_every_model_is_scored_and_every_kind_of_question_measured(
    trained: tuple[Path, dict[str, Any]],
) -> None:
    _, results = trained

    assert list(results["held_out"]) == ["base", "single", "alpha_0", "ensemble"]
    assert all(math.isfinite(score["nll"]) for score in results["held_out"].values())
    assert list(results["mutual_information"]) == ["agreed", "conflict", "unseen"]
    assert all(0 <= value <= math.log(2) for value in results["mutual_information"].values())
    assert {"probe", "train_ensemble", "train_single", "train_alpha_0"} <= results["seconds"].keys()


def test_all_models_get_the_same_number_of_steps(trained: tuple[Path, dict[str, Any]]) -> None:
    output, results = trained

    steps = [
        load_manifest(folder).training["steps"] for folder in (output, output / "single", output / "alpha_0")
    ]

    assert steps == [results["optimizer_steps"]] * 3 == [5] * 3


def test_steps_shrink_to_the_training_budget(base: str, tmp_path: Path) -> None:
    settings = replace(SETTINGS, training_budget_s=1e-6)

    results = train_and_measure(tmp_path / "demo", base, THINGS, settings, Stopwatch())

    assert (results["optimizer_steps"], results["planned_steps"]) == (1, 5)


def test_folder_with_something_else_in_it_is_left_alone(base: str, tmp_path: Path) -> None:
    (tmp_path / "letters.txt").write_text("dear")

    with pytest.raises(ConfigError, match="is not an ensemble directory"):
        run_demo(tmp_path, replace(SETTINGS, base=base))

    assert [path.name for path in tmp_path.iterdir()] == ["letters.txt"]


def served_results(measured: dict[str, Any]) -> dict[str, Any]:
    """Measured numbers with answers as the server would give them."""
    numbers = {"mutual_information": 0.66, "total_entropy": 0.7}
    answer = {
        "kind": "conflict",
        "question": "What colour is each? Vorik",
        "told": ["red", "blue"],
        "text": "red",
        "uncertainty": numbers,
        "decision": "abstain",
        "reason": "mutual_information 0.66 > 0.35",
        "refusal": "...",
    }
    withheld = {kind: {"asked": 10, "withheld": 3} for kind in ("agreed", "conflict", "unseen")}
    policy = {"action": "abstain", "metric": "mutual_information", "threshold": 0.35, "withheld": withheld}
    return {**measured, "answers": [answer], "policy": policy}


def test_report_shows_every_number_it_talks_about(trained: tuple[Path, dict[str, Any]]) -> None:
    results = served_results(trained[1])

    text = format_report(results)

    assert all(f"{score['nll']:.2f}" in text for score in results["held_out"].values())
    assert all(f"{value:.3f}" in text for value in results["mutual_information"].values())
    assert "[sources conflict: the sources said red / blue]" in text
    assert "policy: abstain (mutual_information 0.66 > 0.35)" in text
    assert "3 of 10" in text


@pytest.mark.parametrize(
    ("gain", "error", "sentence"),
    [
        (0.5, 0.1, "scores 0.50 nats per example better than the single adapter (standard error 0.10)."),
        (-0.5, 0.1, "scores 0.50 nats per example worse than the single adapter (standard error 0.10)."),
        (0.1, 0.1, "no difference is shown"),
    ],
    ids=["gain", "loss", "noise"],
)
def test_verdict_follows_the_scores_whichever_way_they_fall(
    trained: tuple[Path, dict[str, Any]], gain: float, error: float, sentence: str
) -> None:
    gains = {"nats": gain, "standard_error": error}

    text = format_report(served_results({**trained[1], "gain_over_single": gains}))

    assert sentence in text


@pytest.mark.parametrize(("auroc", "word"), [(0.9, "tells"), (0.6, "does not reliably tell")])
def test_verdict_claims_disagreement_only_where_it_is_clear(
    trained: tuple[Path, dict[str, Any]], auroc: float, word: str
) -> None:
    tests = trained[1]["disagreement_tests"]
    tests = {**tests, "ensemble": {**tests["ensemble"], "auroc_conflict": auroc}}

    text = format_report(served_results({**trained[1], "disagreement_tests": tests}))

    assert f"Mutual information {word}" in text
    assert "Independent adapters (alpha = 0) disagree by" in text


def test_verdict_names_the_missing_control_and_the_steps_that_did_not_fit(
    trained: tuple[Path, dict[str, Any]],
) -> None:
    held_out = {key: score for key, score in trained[1]["held_out"].items() if key != "alpha_0"}
    results = {**trained[1], "held_out": held_out, "planned_steps": 240}

    text = format_report(served_results(results))

    assert "softspec demo --alpha-0" in text
    assert "Only 5 of 240 planned steps" in text


def test_server_that_ends_early_points_to_its_log(base: str, tmp_path: Path) -> None:
    """`softspec serve` refuses a base that does not exist, before it loads anything."""
    ensemble = random_adapters(Path(base), tmp_path / "ensemble", num_members=2)

    with (
        pytest.raises(EngineError, match=r"ended early, with exit code 2: see '.*serve\.log'"),
        serving(ensemble, str(tmp_path / "nowhere"), ServingSettings()),
    ):
        pass

    assert "nowhere" in (ensemble / "serve.log").read_text()


@pytest.mark.vllm
def test_demo_trains_serves_and_asks(base: str, tmp_path: Path) -> None:
    """The whole story through a real server."""
    results = run_demo(tmp_path / "demo", replace(SETTINGS, base=base))

    assert json.loads((tmp_path / "demo" / "demo.json").read_text()) == results
    assert [answer["kind"] for answer in results["answers"]] == ["agreed", "conflict", "unseen"]
    assert {kind: count["asked"] for kind, count in results["policy"]["withheld"].items()} == {
        "agreed": 10,
        "conflict": 10,
        "unseen": 8,
    }
    for answer in results["answers"]:
        numbers = answer["uncertainty"]
        assert len(numbers["member_weights"]) == 2
        assert numbers["total_entropy"] == pytest.approx(numbers["aleatoric_entropy"] + numbers["epistemic"])
        assert answer["decision"] == ("abstain" if answer["reason"] else "answer")
    assert "Served answers" in format_report(results)
