"""`train_ensemble` from a configuration file to an ensemble directory, and what stops it before the model is loaded."""

import json
import math
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from peft import PeftModel
from transformers import AutoModelForCausalLM

from softspec.artefact.activation import BlockActivation
from softspec.artefact.manifest import load_manifest, member_dir
from softspec.errors import ConfigError, DataError, TrainingError, UserError
from softspec.train.config import TrainConfig
from softspec.train.data.reading import Reading, read_examples
from softspec.train.data.sources import read_rows
from softspec.train.data.units import Example
from softspec.train.loop.facts import as_json
from softspec.train.loop.health import Starvation
from softspec.train.loop.step import optimizer_step
from softspec.train.members.base import load_base, load_tokenizer
from softspec.train.members.load import load_members
from softspec.train.result.export import peft_loglik
from softspec.train.result.scores import score_examples, summarise_scores
from softspec.train.run import train_ensemble
from tests.support.tiny_training import chat_rows, prepared, write_config, write_rows
from tests.support.training_runs import logged

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    """A finished run of four steps with held-out data."""
    config = write_config(
        tmp_path_factory.mktemp("run"), eval_file="train.jsonl", eval_steps=2, layers_to_transform="top_third"
    )
    assert train_ensemble(config) == config.output_dir
    return config


def test_the_manifest_says_what_was_trained(finished: TrainConfig) -> None:
    manifest = load_manifest(finished.output_dir)

    assert manifest.name == "ensemble"
    assert manifest.base_model.path == finished.base_model
    assert manifest.base_model.fingerprint
    assert manifest.renyi_alpha == 0.8
    assert manifest.activation == BlockActivation(block_size=32)
    assert manifest.weights_rule == "prefix_posterior"
    assert manifest.training["steps"] == 4
    assert manifest.training["examples"] == 12


def held_out_examples(config: TrainConfig) -> list[Example]:
    """The training data again: what `finished` was scored on."""
    tokenizer = load_tokenizer(config.base_model)
    rows = read_rows(config.train_file)
    return list(read_examples(rows, Reading(tokenizer, {tokenizer.eos_token_id}, config.max_length)))


def test_held_out_scores_are_in_the_manifest(finished: TrainConfig) -> None:
    """The same numbers by stock PEFT, from the files, and by the paper's formulas."""
    scores = load_manifest(finished.output_dir).held_out
    examples = held_out_examples(finished)

    base = AutoModelForCausalLM.from_pretrained(finished.base_model)
    loglik = peft_loglik(finished.output_dir, base, 2, examples, finished.activation)

    half = math.log(0.5)
    assert scores["mixture_nll"] == pytest.approx(-(half + loglik).logsumexp(0).mean().item(), abs=1e-3)
    assert scores["renyi_loss"] == pytest.approx(
        -(half + 0.8 * loglik).logsumexp(0).mean().item() / 0.8, abs=1e-3
    )
    assert scores["member_nlls"] == pytest.approx((-loglik.mean(1)).tolist(), abs=1e-3)
    assert scores["load"] == pytest.approx(loglik.softmax(0).mean(1).tolist(), abs=1e-3)
    assert scores["member_nll"] == pytest.approx(sum(scores["member_nlls"]) / 2)
    assert scores["member_nll"] < scores["base_nll"]
    assert 0 <= scores["soft_source_mi"] <= scores["specialisation"] + 1e-9


def test_a_saved_ensemble_scores_as_it_did_at_the_end_of_training(finished: TrainConfig) -> None:
    manifest = load_manifest(finished.output_dir)
    members = load_members(finished.output_dir, load_base(finished.base_model))
    log_weights = torch.tensor(manifest.log_weights, dtype=torch.float64)

    scores = score_examples(members, held_out_examples(finished), log_weights, manifest.activation)
    summary = summarise_scores(scores, log_weights, manifest.renyi_alpha, manifest.weights_rule)

    from_disk = as_json(summary)
    assert from_disk.keys() == manifest.held_out.keys()
    for name, value in manifest.held_out.items():
        assert from_disk[name] == pytest.approx(value, abs=1e-4), name


def test_stock_peft_loads_every_member(finished: TrainConfig) -> None:
    for member in range(2):
        base = AutoModelForCausalLM.from_pretrained(finished.base_model)
        model = PeftModel.from_pretrained(base, member_dir(finished.output_dir, member))

        moved = [w for name, w in model.named_parameters() if "lora_B" in name]
        assert moved
        assert all(weight.any() for weight in moved)
        assert {name.split(".layers.")[1][0] for name, _ in model.named_parameters() if "lora_" in name} == {
            "1"
        }


def test_the_log_has_every_step_and_every_evaluation(finished: TrainConfig) -> None:
    lines = (finished.output_dir / "training.jsonl").read_text().splitlines()
    events = [json.loads(line) for line in lines]

    steps = [event for event in events if "loss" in event]
    assert [event["step"] for event in steps] == [1, 2, 3, 4]
    assert [event["step"] for event in events if "held_out" in event] == [2, 4]
    assert set(steps[0]) == {
        "step", "epoch", "loss", "mixture_nll", "member_nll", "load", "routing_perplexity", "learning_rate",
        "gradient_norms", "prior_penalty", "renyi_alpha", "seconds", "active_members", "skipped_responsibility",
        "starved",
    }  # fmt: skip


def test_nothing_but_the_ensemble_is_left(finished: TrainConfig) -> None:
    left = sorted(path.name for path in finished.output_dir.parent.iterdir())

    assert left == ["base", "config.yaml", "ensemble", "train.jsonl"]
    assert sorted(path.name for path in finished.output_dir.iterdir()) == [
        "ensemble.json",
        "member-0",
        "member-1",
        "tensorboard",
        "training.jsonl",
    ]


def test_an_existing_ensemble_is_kept_unless_overwriting_is_asked_for(tmp_path: Path) -> None:
    config = write_config(tmp_path, max_steps=1)
    train_ensemble(config)
    with pytest.raises(ConfigError, match="exists; choose another output_dir or replace it with --overwrite"):
        train_ensemble(config)

    train_ensemble(write_config(tmp_path, max_steps=2), overwrite=True)

    assert load_manifest(config.output_dir).training["steps"] == 2


def test_a_folder_that_is_no_ensemble_is_never_overwritten(tmp_path: Path) -> None:
    config = write_config(tmp_path, output_dir=".")

    with pytest.raises(ConfigError, match="is not an ensemble directory"):
        train_ensemble(config, overwrite=True)


def test_data_as_a_table_train_to_the_same_ensemble(tmp_path: Path) -> None:
    lines, table = (
        write_config(tmp_path, output_dir=name, **settings)
        for name, settings in {
            "lines": {"eval_file": "train.jsonl"},
            "table": {"train_file": "rows", "eval_file": "rows", "dataset_test_split": "train"},
        }.items()
    )
    rows = Dataset.from_list(chat_rows())
    (tmp_path / "rows").mkdir()
    rows.to_parquet(tmp_path / "rows" / "train.parquet")

    expected, found = (load_manifest(train_ensemble(config)) for config in (lines, table))

    assert found.held_out == expected.held_out
    assert found.training["examples_sha256"] == expected.training["examples_sha256"]


def test_one_member_is_an_ordinary_adapter(tmp_path: Path) -> None:
    config = write_config(tmp_path, num_members=1, eval_file="train.jsonl")

    train_ensemble(config)

    scores = load_manifest(config.output_dir).held_out
    assert scores["mixture_nll"] == pytest.approx(scores["member_nll"])
    assert scores["mutual_information"] == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"train_file": "missing.jsonl"}, "missing.jsonl': No such file"),
        ({"eval_file": "missing.jsonl"}, "missing.jsonl': No such file"),
        ({"train_file": "broken.jsonl"}, "broken.jsonl:13: .*empty completion"),
        ({"train_file": "broken"}, r"broken row 0: .*empty completion"),
        ({"train_file": "owner/name"}, "cannot read 'owner/name': Couldn't reach"),
        ({"max_length": 20}, "12 of 12 rows are longer than max_length"),
        ({"target_modules": ["q_prj"]}, "unknown target module 'q_prj'"),
        ({"granularity": "group"}, "train.jsonl: example 1 has no 'group'"),
        ({"layers_to_transform": [9]}, r"layers_to_transform has \[9\]"),
    ],
)
def test_a_mistake_is_reported_before_the_weights_are_loaded(
    tmp_path: Path, settings: dict[str, object], message: str
) -> None:
    write_config(tmp_path)
    (tmp_path / "base" / "model.safetensors").write_bytes(b"loading this would fail")
    rows = [*chat_rows(), {"prompt": "a", "completion": ""}]
    write_rows(tmp_path / "broken.jsonl", rows)
    Dataset.from_list(rows[-1:]).save_to_disk(tmp_path / "broken")
    config = write_config(tmp_path, **settings)

    with pytest.raises(UserError, match=message):
        train_ensemble(config)

    assert not config.output_dir.exists()
    assert not config.output_dir.with_name("ensemble.partial").exists()


def test_an_unknown_base_is_one_clear_line(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    config = config.model_copy(update={"base_model": str(tmp_path / "gone")})

    with pytest.raises(ConfigError, match="cannot load base_model") as error:
        train_ensemble(config)

    assert "\n" not in str(error.value)


def test_an_empty_training_file_is_refused(tmp_path: Path) -> None:
    write_config(tmp_path)
    write_rows(tmp_path / "train.jsonl", [])

    with pytest.raises(DataError, match="no examples found"):
        train_ensemble(write_config(tmp_path))


def test_the_loss_must_stay_finite(tmp_path: Path) -> None:
    """A run that diverges must stop, not write an ensemble of nonsense."""
    config = write_config(tmp_path, learning_rate=1e30, max_grad_norm=0, max_steps=8)

    with pytest.raises(TrainingError, match="no longer finite; lower learning_rate"):
        train_ensemble(config)

    assert not config.output_dir.exists()


def test_gradient_must_stay_finite(tmp_path: Path) -> None:
    """The weights would be lost with it."""
    training = prepared(tmp_path)
    first = training.members.parameters()[0]
    before = first.detach().clone()
    first.register_hook(lambda gradient: gradient * math.inf)

    with pytest.raises(TrainingError, match="step 1: the loss or its gradient is no longer finite"):
        optimizer_step(training, 0)

    assert torch.equal(first, before)


def test_out_of_memory_says_what_to_lower(tmp_path: Path) -> None:
    training = prepared(tmp_path)

    def run_out(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    training.members.model.register_forward_pre_hook(run_out)

    with pytest.raises(TrainingError, match="out of memory; lower micro_batch_size, which is 4"):
        optimizer_step(training, 0)


def test_log_tells_the_loss_that_was_trained(tmp_path: Path) -> None:
    """With the alpha of the step, and with the floor in it."""
    config = write_config(
        tmp_path,
        schedule="plain",
        renyi_alpha=1.0,
        alpha_warmup_ratio=0.5,
        responsibility_floor=0.5,
        learning_rate=0.1,
    )

    train_ensemble(config)

    steps = logged(config)
    assert [step["renyi_alpha"] for step in steps] == [0, 0.5, 1, 1]
    assert steps[0]["loss"] == pytest.approx(steps[0]["member_nll"])
    last = steps[-1]
    assert last["mixture_nll"] < last["member_nll"]
    assert last["loss"] == pytest.approx((last["mixture_nll"] + last["member_nll"]) / 2)


def test_a_member_that_starves_is_told_of_once_it_has_lasted() -> None:
    starvation = Starvation(num_members=2, patience=3)

    loads = [(0.96, 0.04)] * 2 + [(0.5, 0.5)] + [(0.04, 0.96)] * 5

    assert [starvation.begins(load) for load in loads] == [[], [], [], [], [], [0], [], []]


def test_the_warning_says_what_to_try(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("softspec.train.loop.health.STARVED_SHARE", 3.0)

    train_ensemble(write_config(tmp_path, max_steps=12, schedule="plain"))
    warning = "of a fair share of examples for 10 steps: try responsibility_floor"
    assert capsys.readouterr().err.count(warning) == 2

    train_ensemble(write_config(tmp_path, max_steps=12, output_dir="reseeded"))
    told = capsys.readouterr().err
    assert warning not in told
    assert told.count("of a fair share of examples for 10 steps: it began anew beside member ") == 2
