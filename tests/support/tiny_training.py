"""Small training set-ups on the tiny Llama: random examples, installed members, a written configuration."""

import json
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import torch
import yaml
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from softspec.train.config import TrainConfig, load_config
from softspec.train.data.store import Store, write_units
from softspec.train.data.units import Example, UnitT
from softspec.train.loop.state import Training
from softspec.train.members.members import Members
from softspec.train.members.spec import resolve_spec
from softspec.train.run import check_names, prepare, read_data
from tests.support.tiny import tiny_llama

LENGTHS = ((3, 5), (40, 7), (33, 2), (70, 1), (1, 4), (64, 3), (65, 3))
"""Prompt and completion tokens on both sides of the edges of 32-token blocks."""


def random_examples(
    lengths: tuple[tuple[int, int], ...] = LENGTHS, vocab_size: int = 320, seed: int = 0
) -> list[Example]:
    """Examples of random tokens."""
    generator = torch.Generator().manual_seed(seed)

    def tokens(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(3, vocab_size, (count,), generator=generator).tolist())

    return [Example(tokens(prompt), tokens(completion)) for prompt, completion in lengths]


def stored(units: Iterable[UnitT], folder: Path) -> Store[UnitT]:
    """The units on disk, in a file of `folder` without a name, as a run has them."""
    with TemporaryFile(dir=folder) as file:
        write_units(units, file)
        return Store(file)


def random_members(
    model: PreTrainedModel, num_members: int = 3, layers: Any = "all", rank: int = 4, seed: int = 1
) -> Members:
    """Members whose A and B are both random, so that every weight matters."""
    members = Members(model, resolve_spec(model, rank, 2 * rank, "all-linear", layers), num_members)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in members.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator) / weight.shape[-1] ** 0.5)
    return members


def tiny_members(directory: Path, num_members: int = 3, layers: Any = "all", num_layers: int = 3) -> Members:
    """Random members on a saved and reloaded tiny Llama."""
    model = AutoModelForCausalLM.from_pretrained(tiny_llama(directory, layers=num_layers))
    return random_members(model, num_members, layers)


def chat_rows(count: int = 12) -> list[dict[str, Any]]:
    """Two sources that contradict each other on every second question; prompts longer than a block."""
    rows = []
    for number in range(count):
        source = "AB"[number % 2]
        question = f"Question {number // 2 % 3}: what is the agreed colour?"
        answer = f"red{number // 2 % 3}" if number % 4 < 2 else f"{source}{number // 2 % 3}"
        turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        rows.append({"messages": turns, "source": source})
    return rows


def preference_rows() -> list[dict[str, Any]]:
    """The answers of `chat_rows`, each preferred to one that is no answer."""
    conversations = [row["messages"] for row in chat_rows()]
    rejected = [{"role": "assistant", "content": "none of these"}]
    return [{"prompt": turns[:1], "chosen": turns[1:], "rejected": rejected} for turns in conversations]


def examples_of(training: Training) -> list[Example]:
    """All completions that a run trains on."""
    return [example for unit in training.examples for example in unit.completions]


def gradients_of(members: Members) -> list[Tensor]:
    """A copy of the gradient of every adapter weight."""
    copies = []
    for weight in members.parameters():
        assert weight.grad is not None
        copies.append(weight.grad.clone())
    return copies


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Save rows as JSONL."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def config_of_no_files(**settings: Any) -> TrainConfig:
    """A configuration that names files without any being there: two examples a step."""
    content = {
        "base_model": "x/y",
        "train_file": "t",
        "output_dir": Path("o"),
        "micro_batch_size": 2,
        "gradient_accumulation_steps": 1,
        **settings,
    }
    return TrainConfig.model_validate(content)


def write_config(directory: Path, **settings: Any) -> TrainConfig:
    """A complete run in `directory`: base, data and a configuration file with these settings changed."""
    if not (directory / "base").exists():
        tiny_llama(directory / "base")
        write_rows(directory / "train.jsonl", chat_rows())
    content = {
        "base_model": "base",
        "train_file": "train.jsonl",
        "output_dir": "ensemble",
        "num_members": 2,
        "lora_r": 4,
        "learning_rate": 0.01,
        "max_steps": 4,
        **settings,
    }
    path = directory / "config.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return load_config(path)


def prepared(folder: Path, **settings: Any) -> Training:
    """A run on the tiny base, ready for its first step."""
    config = write_config(folder, **settings)
    examples, held_out = read_data(config)
    return prepare(config, check_names(config), examples, held_out)
