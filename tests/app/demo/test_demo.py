"""The demo from data to a report, on a random tiny model; its numbers mean nothing, its structure does."""

import json
import math
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

import softspec.train.run
from softspec.app.demo.folder import PARTS, RESULT_KEYS
from softspec.app.demo.report import format_disagreement, format_policy, format_scores, format_verdict
from softspec.app.demo.served import serving
from softspec.app.demo.settings import RECIPE, DemoSettings, ServingSettings
from softspec.app.demo.story import run_demo
from softspec.artefact.manifest import load_manifest
from softspec.errors import ConfigError, EngineError, Interrupted
from softspec.train.loop.step import optimizer_step
from tests.support.scripted_answers import answering
from tests.support.tiny import random_adapters, tiny_llama

STEPS = 5
RECIPE_OF_A_SMALL_DEMO = {**RECIPE, "num_members": 2, "lora_r": 2, "save_steps": 2}


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> DemoSettings:
    base = str(tiny_llama(tmp_path_factory.mktemp("base")))
    return DemoSettings(base=base, train_examples=40, held_out_examples=6, recipe=RECIPE_OF_A_SMALL_DEMO)


@contextmanager
def scripted(*_: Any) -> Iterator[str]:
    """In the place of `serving`: the same answer to every question."""
    with answering() as url:
        yield url


@pytest.fixture(scope="module")
def compared(
    settings: DemoSettings, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any], list[str]]:
    """One run with the comparison: its folder, what it measured, and the parts of its report."""
    output, parts = tmp_path_factory.mktemp("runs") / "demo", list[str]()
    results = run_demo(output, settings, compare=True, show=parts.append, serve=scripted)
    return output, results, parts


@pytest.fixture
def results(compared: tuple[Path, dict[str, Any], list[str]]) -> dict[str, Any]:
    return compared[1]


def test_output_is_an_ensemble_with_its_data_and_the_models_it_was_compared_with(
    compared: tuple[Path, dict[str, Any], list[str]],
) -> None:
    output = compared[0]

    assert load_manifest(output).num_members == 2
    assert load_manifest(output).name == "demo"
    assert load_manifest(output / "single").num_members == 1
    assert load_manifest(output / "alpha_0").renyi_alpha == 0
    assert len((output / "train.jsonl").read_text().splitlines()) == 40
    assert len((output / "held_out.jsonl").read_text().splitlines()) == 6
    assert list(output.parent.iterdir()) == [output]
    assert not {path.name for path in output.iterdir()} & {"ensemble", "ensemble.partial"}


def test_scores_go_into_the_manifest_too(compared: tuple[Path, dict[str, Any], list[str]]) -> None:
    output, results, _ = compared

    assert load_manifest(output).held_out["mixture_nll"] == pytest.approx(
        results["held_out"]["ensemble"]["nll"]
    )
    assert load_manifest(output).held_out["base_nll"] == pytest.approx(results["held_out"]["base"]["nll"])


def test_every_model_is_scored_and_every_kind_of_question_measured(results: dict[str, Any]) -> None:
    assert list(results["held_out"]) == ["base", "single", "alpha_0", "ensemble"]
    assert all(math.isfinite(score["nll"]) for score in results["held_out"].values())
    assert list(results["mutual_information"]) == ["agreed", "conflict", "unseen"]
    assert all(0 <= value <= math.log(2) for value in results["mutual_information"].values())
    assert [part for part, seconds in results["seconds"].items() if seconds is None] == ["probe"]


def test_all_models_see_every_statement_once(
    compared: tuple[Path, dict[str, Any], list[str]],
) -> None:
    output, results, _ = compared

    steps = [
        load_manifest(folder).training["steps"] for folder in (output, output / "single", output / "alpha_0")
    ]

    assert steps == [results["optimizer_steps"]] * 3 == [STEPS] * 3


def test_without_the_comparison_its_numbers_are_null_and_no_key_is_missing(
    settings: DemoSettings, compared: tuple[Path, dict[str, Any], list[str]], tmp_path: Path
) -> None:
    parts = list[str]()

    results = run_demo(tmp_path / "demo", settings, show=parts.append, serve=scripted)

    assert json.loads((tmp_path / "demo" / "demo.json").read_text()) == results
    assert tuple(results) == RESULT_KEYS
    assert tuple(results["seconds"]) == PARTS
    assert keys_of(results) == keys_of(without_comparison(compared[1]))
    assert [key for key, value in results.items() if value is None] == ["gain_over_single"]
    assert results["held_out"]["single"] is results["held_out"]["alpha_0"] is None
    assert results["disagreement_tests"]["alpha_0"] is None
    assert "softspec demo --compare" in parts[-1]
    assert "single adapter" not in "".join(parts)


def without_comparison(results: dict[str, Any]) -> dict[str, Any]:
    """The same results, had the comparison not been asked for."""
    return {
        **results,
        "gain_over_single": None,
        "held_out": {**results["held_out"], "single": None, "alpha_0": None},
        "disagreement_tests": {**results["disagreement_tests"], "alpha_0": None},
    }


def keys_of(content: Any) -> Any:
    """The keys of a mapping and of those in it."""
    return {key: keys_of(value) for key, value in content.items()} if isinstance(content, dict) else None


def test_first_answers_are_shown_before_anything_else(
    compared: tuple[Path, dict[str, Any], list[str]],
) -> None:
    parts = compared[2]

    assert parts[0].startswith("Served answers")
    assert "mutual information 0.66" in parts[0]
    assert "weights of the members 0.50 0.50" in parts[0]
    assert "policy: abstain (mutual_information 0.66 > 0.35)" in parts[0]


# Interrupted


@dataclass
class Course:
    """What a demo does until it ends, and where a signal comes."""

    signal_in_step: int | None = None
    signal_when_serving: bool = False
    signal_when_shown: str | None = None
    steps: int = 0
    servers: int = 0

    def run(self, output: Path, settings: DemoSettings) -> dict[str, Any]:
        with patch.object(softspec.train.run, "optimizer_step", self._step):
            return run_demo(output, settings, compare=True, show=self._show, serve=self._serve)

    def _step(self, *arguments: Any) -> Any:
        self.steps += 1
        if self.steps == self.signal_in_step:
            os.kill(os.getpid(), signal.SIGTERM)
        return optimizer_step(*arguments)

    @contextmanager
    def _serve(self, *_: Any) -> Iterator[str]:
        self.servers += 1
        if self.signal_when_serving:
            os.kill(os.getpid(), signal.SIGTERM)
        with answering() as url:
            yield url

    def _show(self, part: str) -> None:
        if self.signal_when_shown and part.startswith(self.signal_when_shown):
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("course", "finished", "servers"),
    [
        (Course(signal_in_step=3), None, 1),
        (Course(signal_when_serving=True), "training", 1),
        (Course(signal_when_shown="Served answers"), "training", 1),
        (Course(signal_when_shown="The policy"), "training, answers", 0),
        (Course(signal_when_shown="Mutual information"), "training, answers, measurement", 0),
        (Course(signal_in_step=STEPS + 2), "training, answers, measurement", 0),
        (Course(signal_in_step=2 * STEPS + 2), "training, answers, measurement", 0),
        (Course(signal_when_shown="Held-out"), "training, answers, measurement, comparison", 0),
    ],
    ids=["training", "start", "answers", "policy", "measurement", "single", "control", "end"],
)
def test_an_interrupted_demo_goes_on_where_it_was(
    course: Course,
    finished: str | None,
    servers: int,
    settings: DemoSettings,
    results: dict[str, Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(Interrupted, match="the same command goes on from there") as stop:
        course.run(tmp_path / "demo", settings)
    assert stop.value.exit_code == 128 + signal.SIGTERM
    capsys.readouterr()

    second = Course()
    found = second.run(tmp_path / "demo", settings)

    assert {**found, "seconds": None} == {**results, "seconds": None}
    assert course.steps + second.steps == 3 * STEPS
    assert second.servers == servers
    begun = [line for line in capsys.readouterr().err.splitlines() if "was begun before" in line]
    assert begun == [
        f"softspec: '{tmp_path / 'demo'}' was begun before; finished there: {finished or 'nothing'}"
    ]


def test_a_finished_demo_prints_its_report_again_at_once(
    compared: tuple[Path, dict[str, Any], list[str]], settings: DemoSettings
) -> None:
    output, results, parts = compared
    again, course = list[str](), Course()

    with patch.object(softspec.train.run, "optimizer_step", course._step):
        found = run_demo(output, settings, show=again.append, serve=course._serve)

    assert found == results
    assert (course.steps, course.servers) == (0, 0)
    assert set(again) <= set(parts)
    assert again[-1] == parts[-1]


def test_a_demo_of_other_settings_is_refused_and_says_what_differs(
    compared: tuple[Path, dict[str, Any], list[str]], settings: DemoSettings
) -> None:
    other = replace(settings, recipe={**settings.recipe, "lora_r": 16})

    with pytest.raises(
        ConfigError, match=r"with recipe\.lora_r 2, not 16; give --output OTHER, or --overwrite"
    ):
        run_demo(compared[0], other, serve=scripted)


def test_overwriting_begins_anew_and_leaves_what_the_demo_did_not_make(
    settings: DemoSettings, tmp_path: Path
) -> None:
    run_demo(tmp_path, settings, serve=scripted)
    (tmp_path / "letters.txt").write_text("dear")
    course = Course(signal_in_step=1)

    with pytest.raises(Interrupted), patch.object(softspec.train.run, "optimizer_step", course._step):
        run_demo(tmp_path, replace(settings, seed=1), overwrite=True, serve=scripted)

    assert not (tmp_path / "ensemble.json").exists()
    assert (tmp_path / "letters.txt").read_text() == "dear"


def test_folder_with_something_else_in_it_is_left_alone(settings: DemoSettings, tmp_path: Path) -> None:
    (tmp_path / "letters.txt").write_text("dear")

    for overwrite in (False, True):
        with pytest.raises(ConfigError, match="is not a folder of this demo"):
            run_demo(tmp_path, settings, overwrite=overwrite)

    assert [path.name for path in tmp_path.iterdir()] == ["letters.txt"]


# The report


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
    results: dict[str, Any], gain: float, error: float, sentence: str
) -> None:
    gains = {"nats": gain, "standard_error": error}

    text = format_verdict({**results, "gain_over_single": gains})

    assert sentence in text


@pytest.mark.parametrize(("auroc", "word"), [(0.9, "tells"), (0.6, "does not reliably tell")])
def test_verdict_claims_disagreement_only_where_it_is_clear(
    results: dict[str, Any], auroc: float, word: str
) -> None:
    tests = results["disagreement_tests"]
    tests = {**tests, "ensemble": {**tests["ensemble"], "auroc_conflict": auroc}}

    text = format_verdict({**results, "disagreement_tests": tests})

    assert f"Mutual information {word}" in text
    assert "Independent adapters (alpha = 0) disagree by" in text


def test_report_shows_every_number_it_talks_about(results: dict[str, Any]) -> None:
    scores, disagreement = format_scores(results), format_disagreement(results)

    assert all(f"{score['nll']:.2f}" in scores for score in results["held_out"].values())
    assert all(f"{value:.3f}" in disagreement for value in results["mutual_information"].values())
    assert "withheld where sources conflict:   10 of 10" in format_policy(results["policy"])


# The server


def test_server_that_ends_early_points_to_its_log(settings: DemoSettings, tmp_path: Path) -> None:
    """`softspec serve` refuses a base that does not exist, before it loads anything."""
    ensemble = random_adapters(Path(str(settings.base)), tmp_path / "ensemble", num_members=2)
    log = tmp_path / "serve.log"

    with (
        pytest.raises(
            EngineError, match=r"exit code 2 \(base model .* does not exist.*\): see '.*serve\.log'"
        ),
        serving(ensemble, str(tmp_path / "nowhere"), ServingSettings(), log),
    ):
        pass

    assert "nowhere" in log.read_text()


@pytest.mark.vllm
def test_demo_trains_serves_and_asks(settings: DemoSettings, tmp_path: Path) -> None:
    """The whole story through a real server."""
    results = run_demo(tmp_path / "demo", settings)

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
