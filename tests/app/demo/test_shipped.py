"""The ensemble in the package: small, of the demo's recipe, for the wheel's base, and as good as it says."""

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

from softspec.app.demo.facts import ask, draw_statements, invent_things, write_rows
from softspec.app.demo.first_look import try_shipped
from softspec.app.demo.served import ask_model, connect, serving
from softspec.app.demo.settings import DemoSettings
from softspec.app.demo.ship import score, write_16_bit
from softspec.app.demo.shipped import SHIPPED, named_ensemble
from softspec.app.smollm2 import DEFAULT_BASE, base_of, local_base
from softspec.artefact.fingerprint import fingerprint
from softspec.artefact.manifest import load_manifest, member_dir
from softspec.maths.sampling import SamplingSpec
from softspec.reference import ReferenceEnsemble
from tests.support.scripted_answers import answering
from tests.support.tiny import random_adapters, tiny_llama

SETTINGS = DemoSettings()
THINGS = invent_things(SETTINGS.seed)


def files() -> list[Path]:
    return [path for path in SHIPPED.rglob("*") if path.is_file()]


def test_four_members_in_16_bits_are_at_most_4_mb() -> None:
    weights = [
        load_file(member_dir(SHIPPED, member) / "adapter_model.safetensors")
        for member in range(load_manifest(SHIPPED).num_members)
    ]

    assert len(weights) == 4
    assert all(tensor.element_size() == 2 for member in weights for tensor in member.values())
    assert sum(path.stat().st_size for path in files()) <= 4_000_000
    assert max(path.stat().st_size for path in files()) < 2**20


def test_it_was_trained_by_the_recipe_of_the_demo() -> None:
    training = load_manifest(SHIPPED).training

    assert {key: training["settings"][key] for key in SETTINGS.recipe} == dict(SETTINGS.recipe)
    assert training["examples"] == SETTINGS.train_examples
    assert training["data_seed"] == training["settings"]["seed"] == SETTINGS.seed
    assert training["steps"] == SETTINGS.train_examples / SETTINGS.recipe["micro_batch_size"]


def test_none_of_its_files_names_a_path_of_the_machine_that_made_it() -> None:
    texts = [path.read_text(encoding="utf-8") for path in files() if path.suffix == ".json"]

    assert len(texts) == 5
    assert not [found for text in texts for found in re.findall(r'"[~.]{0,2}/[^"]*"', text)]
    configs = [
        json.loads((member_dir(SHIPPED, member) / "adapter_config.json").read_text()) for member in range(4)
    ]
    assert {config["base_model_name_or_path"] for config in configs} == {DEFAULT_BASE}


def test_demo_is_its_name_where_no_ensemble_is_called_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo").mkdir()

    assert named_ensemble(Path("demo")) == SHIPPED
    assert named_ensemble(Path("runs/demo")) == Path("runs/demo")


def test_an_ensemble_called_demo_in_the_working_directory_wins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    random_adapters(tiny_llama(tmp_path / "base"), tmp_path / "demo", num_members=2)

    assert named_ensemble(Path("demo")) == Path("demo")


def test_trying_it_shows_one_question_of_each_kind_and_what_its_members_think(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "models" / DEFAULT_BASE).mkdir(parents=True)
    monkeypatch.setenv("SOFTSPEC_CACHE", str(tmp_path))
    served: list[Any] = []

    @contextmanager
    def scripted(*arguments: Any) -> Iterator[str]:
        served.extend(arguments)
        with answering() as url:
            yield url

    text = try_shipped(scripted)

    assert served[:2] == [SHIPPED, str(tmp_path / "models" / DEFAULT_BASE)]
    assert not served[3].exists()
    for kind in ("sources agree", "sources conflict", "never seen"):
        assert f"[{kind}: " in text
    assert text.count("mutual information 0.66") == 3
    assert text.count("weights of the members 0.50 0.50") == 3


def test_shipping_halves_the_weights_and_scores_them_again(tmp_path: Path) -> None:
    base = tiny_llama(tmp_path / "base")
    folder = random_adapters(base, tmp_path / "run", num_members=2, rank=2)
    write_rows(folder / "held_out.jsonl", (each.row() for each in draw_statements(THINGS, 4, seed=1)))

    shipped = write_16_bit(folder, str(base), SETTINGS, tmp_path / "shipped")

    manifest = load_manifest(shipped)
    assert manifest.base_model.path == DEFAULT_BASE
    assert manifest.held_out["examples"] == 4
    assert set(manifest.held_out["question_mutual_information"]) == {"agreed", "conflict", "unseen"}
    whole = load_file(member_dir(folder, 1) / "adapter_model.safetensors")
    half = load_file(member_dir(shipped, 1) / "adapter_model.safetensors")
    assert all(torch.equal(half[name], weight.half()) for name, weight in whole.items())


@pytest.mark.model
def test_its_base_is_the_one_that_the_wheel_gives() -> None:
    manifest = load_manifest(SHIPPED)

    assert manifest.base_model.path == DEFAULT_BASE
    assert manifest.base_model.fingerprint == fingerprint(str(local_base()))
    assert base_of([SHIPPED]) == str(local_base())


@pytest.mark.pilot
def test_its_numbers_are_those_of_its_16_bit_members(tmp_path: Path) -> None:
    shipped = shutil.copytree(SHIPPED, tmp_path / "shipped")
    training = draw_statements(THINGS, SETTINGS.train_examples, SETTINGS.seed)
    held_out = draw_statements(THINGS, SETTINGS.held_out_examples, SETTINGS.seed + 1, exclude=training)
    write_rows(tmp_path / "held_out.jsonl", (each.row() for each in held_out))

    score(shipped, str(local_base()), tmp_path / "held_out.jsonl", SETTINGS)

    claimed, found = load_manifest(SHIPPED).held_out, load_manifest(shipped).held_out
    assert found.keys() == claimed.keys()
    for key, value in claimed.items():
        assert found[key] == pytest.approx(value, abs=1e-3), key


@pytest.mark.model
@pytest.mark.slow
@pytest.mark.vllm
def test_served_it_agrees_with_the_reference(tmp_path: Path) -> None:
    """16-bit adapters on a float32 engine, and the same in stock PEFT."""
    base = str(local_base())
    questions = [
        next(ask([thing]) for thing in THINGS if thing.kind == kind) for kind in ("agreed", "conflict")
    ]

    with (
        serving(SHIPPED, base, SETTINGS.serving, tmp_path / "serve.log") as url,
        connect(url) as client,
    ):
        served = [ask_model(client, "demo", question, {"action": "answer"}) for question in questions]

    tokenizer, reference = AutoTokenizer.from_pretrained(base), ReferenceEnsemble.load(base, SHIPPED)
    for question, answer in zip(questions, served, strict=True):
        turns = [{"role": "user", "content": question}]
        prompt = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=True)[
            "input_ids"
        ]
        tokens = reference.decode(prompt, SamplingSpec(temperature=0), answer.uncertainty["num_tokens"])
        expected = torch.tensor([token.member_log_probs for token in tokens]).sum(0)
        assert answer.uncertainty["member_log_probs"] == pytest.approx(expected.tolist(), abs=1e-3)
