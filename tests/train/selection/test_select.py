"""`softspec select` on a tiny base: what it writes, what it never looks at too early, and how it goes on."""

import json
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from safetensors.torch import load_file

import softspec.train.selection.trials as trials
from softspec.app.cli.main import main
from softspec.artefact.manifest import load_manifest
from softspec.errors import ConfigError, DataError, Interrupted
from softspec.train.config import TrainConfig
from softspec.train.data.units import Unit
from softspec.train.loop.facts import StepFacts
from softspec.train.loop.step import optimizer_step
from softspec.train.run import train_ensemble
from softspec.train.selection import finish, units
from softspec.train.selection.journal import Journal
from softspec.train.selection.plan import Wanted
from softspec.train.selection.select import select_ensemble
from tests.support.tiny import tiny_llama
from tests.support.tiny_training import write_config, write_rows
from tests.support.training_runs import Killed, dying_at

pytestmark = pytest.mark.slow

STEPS = 8
QUICK = Wanted(alphas=(0.0, 0.8, 1.0))


def rows(count: int, first: int = 0) -> list[dict[str, Any]]:
    """Two sources that answer different questions in different ways."""
    found = []
    for number in range(first, first + count):
        source = "AB"[number % 2]
        turns = [
            {"role": "user", "content": f"Q{number}"},
            {"role": "assistant", "content": f"{source}{number % 3}"},
        ]
        found.append({"messages": turns, "source": source})
    return found


def preferences(count: int, annotators: int) -> list[dict[str, Any]]:
    """Annotators of two tastes, with their pairs one after another."""
    return [
        {
            "prompt": f"Q{number}: ",
            "chosen": "AB"[number * annotators // count % 2],
            "rejected": "BA"[number * annotators // count % 2],
            "group": number * annotators // count,
        }
        for number in range(count)
    ]


def configured(folder: Path, **settings: Any) -> TrainConfig:
    folder.mkdir(exist_ok=True)
    if not (folder / "base").exists():
        tiny_llama(folder / "base", layers=1)
        write_rows(folder / "train.jsonl", rows(32))
        write_rows(folder / "held_out.jsonl", rows(40, first=100))
    return write_config(
        folder,
        **{"eval_file": "held_out.jsonl", "max_steps": STEPS, "activation": {"kind": "always"}, **settings},
    )


@contextmanager
def counted_steps(stop_at: int | None = None) -> Iterator[list[int]]:
    """The steps that are taken here; a signal arrives in the one with that number."""
    steps: list[int] = []

    def counting(training: Any, step: int) -> StepFacts:
        steps.append(step)
        if len(steps) == stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
        return optimizer_step(training, step)

    with patch.object(trials, "optimizer_step", counting):
        yield steps


@pytest.fixture(scope="module")
def selected(tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainConfig, dict[str, Any], int]:
    """A selection that nothing disturbed: its configuration, its journal, and the steps that it took."""
    config = configured(tmp_path_factory.mktemp("selected"))
    with counted_steps() as steps:
        _, journal = select_ensemble(config, QUICK)
    return config, journal, len(steps)


def test_what_is_written_is_an_ensemble_with_its_journal(selected: Any) -> None:
    config, journal, _ = selected

    manifest = load_manifest(config.output_dir)

    assert json.loads((config.output_dir / "selection.json").read_text()) == journal
    assert manifest.num_members == journal["chosen"]["num_members"]
    assert manifest.renyi_alpha == journal["chosen"]["renyi_alpha"]
    assert manifest.training["selection"]["final"] == journal["final"]
    assert manifest.held_out["mixture_nll"] == pytest.approx(journal["final"]["chosen"]["nll"])
    assert (config.output_dir / "training.jsonl").exists()
    assert not config.output_dir.with_name("ensemble.selection").exists()


def test_the_journal_adds_up(selected: Any) -> None:
    _, journal, _ = selected

    costs = {name: entry["adapter_steps"] for name, entry in journal["configurations"].items()}

    assert sum(costs.values()) <= journal["plan"]["most_adapter_steps"]
    for entry in journal["configurations"].values():
        steps = [rung["step"] for rung in entry["rungs"]]
        assert steps == sorted(set(steps))
        began = entry["starts_from"]["step"] if entry["starts_from"] else 0
        assert entry["adapter_steps"] == entry["num_members"] * (steps[-1] - began)
        assert entry["verdict"]
    assert journal["data"]["selection"]["examples"] + journal["data"]["final"]["examples"] == 40


def test_a_configuration_that_began_anew_is_what_train_makes_of_it(tmp_path: Path) -> None:
    """The pauses of the search change nothing, down to the last bit."""
    config = configured(tmp_path, num_members=1, renyi_alpha=0.0)
    plain = config.model_copy(update={"output_dir": tmp_path / "plain"})

    select_ensemble(config, QUICK)
    train_ensemble(plain)

    found, expected = (
        load_file(folder / "member-0" / "adapter_model.safetensors")
        for folder in (config.output_dir, plain.output_dir)
    )
    assert found.keys() == expected.keys()
    assert all(torch.equal(weight, expected[name]) for name, weight in found.items())


def test_the_final_units_are_scored_once_all_is_decided(tmp_path: Path) -> None:
    config = configured(tmp_path)
    seen: list[tuple[set[tuple[int, ...]], bool]] = []
    decided: list[bool] = []

    def watched(members: Any, scored: Any, *arguments: Any) -> Any:
        seen.append(({unit.prompt_ids for unit in scored}, bool(decided)))
        return units.score(members, scored, *arguments)

    def finishing(*arguments: Any) -> Path:
        decided.append(True)
        return finish.finish(*arguments)

    with (
        patch.object(trials, "score", watched),
        patch.object(finish, "score", watched),
        patch("softspec.train.selection.select.finish", finishing),
    ):
        select_ensemble(config, QUICK)

    before = set().union(*(prompts for prompts, after in seen if not after))
    after = [prompts for prompts, after in seen if after]
    assert len(before) == 28
    assert len(after) <= 2
    assert all(len(prompts) == 12 and not prompts & before for prompts in after)


def test_nothing_is_trained_on_what_is_held_out_of_the_training_rows(tmp_path: Path) -> None:
    config = configured(tmp_path, eval_file=None)
    trained: set[tuple[int, ...]] = set()
    write_rows(tmp_path / "train.jsonl", rows(150))

    def watched(training: Any, step: int) -> StepFacts:
        trained.update(training.examples[index].prompt_ids for index in training.order.indices(step))
        assert not trained & {unit.prompt_ids for unit in training.held_out}
        return optimizer_step(training, step)

    with patch.object(trials, "optimizer_step", watched):
        _, journal = select_ensemble(config, QUICK)

    assert journal["data"]["held_out_from"] == "train_file"
    assert [journal["data"][part]["examples"] for part in ("train", "selection", "final")] == [120, 21, 9]


@pytest.mark.parametrize("share", [0.5, 0.95])
def test_an_interrupted_selection_goes_on_to_the_same_end(
    tmp_path: Path, selected: Any, share: float
) -> None:
    _, expected, whole = selected
    config = configured(tmp_path)

    with counted_steps(int(share * whole)) as before, pytest.raises(Interrupted, match="the same command"):
        select_ensemble(config, QUICK)
    with counted_steps() as after:
        _, journal = select_ensemble(config, QUICK)

    assert len(before) == int(share * whole)
    assert len(before) + len(after) == whole
    assert without_seconds(journal) == without_seconds(expected)


@pytest.mark.parametrize("call", [6])
def test_a_selection_that_was_killed_goes_on_too(tmp_path: Path, selected: Any, call: int) -> None:
    """It dies after a configuration was trained, before its table is kept."""
    _, expected, whole = selected
    config = configured(tmp_path)

    with patch.object(Journal, "keep", dying_at(call, Journal.keep)), pytest.raises(Killed):
        select_ensemble(config, QUICK)
    with counted_steps() as after:
        _, journal = select_ensemble(config, QUICK)

    assert len(after) < whole
    assert without_seconds(journal) == without_seconds(expected)


def without_seconds(journal: dict[str, Any]) -> Any:
    content = json.loads(json.dumps({**journal, "settings": {}}))
    for entry in content["configurations"].values():
        del entry["seconds"]
    return content


def test_a_selection_goes_on_with_its_own_settings_only(tmp_path: Path) -> None:
    config = configured(tmp_path)
    with counted_steps(stop_at=3), pytest.raises(Interrupted):
        select_ensemble(config, QUICK)

    with pytest.raises(ConfigError, match=r"settings learning_rate is 0.02.*began with 0.01; change it back"):
        select_ensemble(config.model_copy(update={"learning_rate": 0.02}), QUICK)
    with pytest.raises(ConfigError, match=r"plan alphas is \[0.0, 0.5\].*began with \[0.0, 0.8, 1.0\]"):
        select_ensemble(config, Wanted(alphas=(0.0, 0.5)))


def test_other_rows_are_other_data(tmp_path: Path) -> None:
    config = configured(tmp_path)
    with counted_steps(stop_at=3), pytest.raises(Interrupted):
        select_ensemble(config, QUICK)
    write_rows(tmp_path / "held_out.jsonl", rows(40, first=200))

    with pytest.raises(ConfigError, match="cannot go on: data selection"):
        select_ensemble(config, QUICK)


def grouped(folder: Path) -> TrainConfig:
    config = configured(
        folder, objective="dpo", granularity="group", group_rows=4, label_smoothing=0.1, beta=1.0
    )
    write_rows(folder / "train.jsonl", preferences(48, annotators=12))
    write_rows(folder / "held_out.jsonl", preferences(108, annotators=27))
    return config


def by_token(folder: Path) -> TrainConfig:
    return configured(folder, granularity="token")


@pytest.mark.parametrize("made", [grouped, by_token])
def test_groups_of_preferences_and_tokens_are_selected_by_too(
    tmp_path: Path, made: Callable[[Path], TrainConfig]
) -> None:
    config = made(tmp_path)

    _, journal = select_ensemble(config, Wanted(alphas=(0.0, 1.0)))

    manifest = load_manifest(config.output_dir)
    assert (manifest.objective, manifest.granularity) == (config.objective, config.granularity)
    assert journal["final"]["chosen"]["nll"] > 0
    if config.objective == "dpo":
        # 108 pairs of 27 annotators, who come into a part as a whole.
        assert journal["final"]["clusters"] == 8
        assert journal["final"]["examples"] == 32


def test_the_unit_of_a_score_is_what_the_frame_says(tmp_path: Path) -> None:
    """The table against transformers, one completion at a time."""
    config = configured(tmp_path, num_members=1)
    from softspec.train.run import check_names, prepare, read_data

    examples, held_out = read_data(config)
    training = prepare(config, check_names(config), examples, held_out)
    some: list[Unit] = list(held_out[:20])

    table = units.score(training.members, some, config, units.frame_of(some, config))

    with training.members.removed() as base, torch.no_grad():
        for column, unit in enumerate(some):
            (example,) = unit.completions
            ids = torch.tensor([example.prompt_ids + example.completion_ids])
            logprobs = base(input_ids=ids).logits[0, len(example.prompt_ids) - 1 : -1].log_softmax(-1)
            expected = logprobs.gather(1, ids[0, len(example.prompt_ids) :, None]).sum().item()
            assert table[0, column].item() == pytest.approx(expected, abs=1e-3)


def test_the_command_prints_what_was_tried_and_learned(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    configured(tmp_path)
    out = tmp_path / "out.json"

    code = main(["select", str(tmp_path / "config.yaml"), "--alphas", "0", "1", "--json", str(out)])

    printed = capsys.readouterr().out
    assert code == 0
    assert "adapter-steps" in printed
    assert json.loads(out.read_text())["learned"][-1] in printed
    assert f"softspec serve {tmp_path / 'ensemble'}" in printed


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"eval_steps": 2, "early_stopping_patience": 1}, ConfigError, "early_stopping_patience ends runs"),
        ({"max_steps": 3}, ConfigError, "3 steps for each configuration are too few"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    tmp_path: Path, settings: dict[str, Any], error: type[Exception], message: str
) -> None:
    config = configured(tmp_path, **settings)

    with pytest.raises(error, match=message):
        select_ensemble(config, QUICK)

    assert not config.output_dir.with_name("ensemble.selection").exists()


def test_too_few_held_out_rows_are_refused(tmp_path: Path) -> None:
    config = configured(tmp_path)
    write_rows(tmp_path / "held_out.jsonl", rows(10))

    with pytest.raises(DataError, match="eval_file has 10 different prompts or groups"):
        select_ensemble(config, QUICK)


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (Wanted(members=(64,)), "alpha 0 with 64 members .*: skip_responsibility must be below"),
        (Wanted(ranks=(4, 1024)), "1024"),
    ],
)
def test_what_could_not_be_trained_or_served_is_refused_before_data_are_read(
    tmp_path: Path, wanted: Wanted, message: str
) -> None:
    config = configured(tmp_path, skip_responsibility=0.02)
    (tmp_path / "train.jsonl").unlink()

    with pytest.raises(ConfigError, match=message):
        select_ensemble(config, wanted)
