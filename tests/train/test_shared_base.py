"""Processes that share the base's layers (FSDP) end where one with the whole base would."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from softspec.errors import ConfigError
from softspec.train.members.shared import check_shareable
from softspec.train.processes import NOT_USED, Processes
from softspec.train.run import train_ensemble
from tests.support.tiny_training import chat_rows, preference_rows, write_config, write_rows
from tests.support.torchrun import torchrun, train
from tests.support.training_runs import assert_close_adapters, assert_ended_alike, interrupted

SHORT = [{"prompt": f"{number}?", "completion": "no"} for number in range(3)]
"""Without a whole block, so that one process has nothing to share of a prompt while the other has."""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("data", "held_out", "settings"),
    [
        (
            [*SHORT, *chat_rows()],
            chat_rows()[:5],
            {"eval_steps": 2, "gradient_checkpointing": True, "layers_to_transform": [1]},
        ),
        (
            [{**row, "group": number % 3} for number, row in enumerate(preference_rows())],
            preference_rows()[:1],
            {"objective": "dpo", "granularity": "group", "beta": 1.0, "learning_rate": 0.0005},
        ),
        pytest.param(
            chat_rows(),
            chat_rows()[:3],
            {"granularity": "token", "activation": {"kind": "always"}},
            marks=pytest.mark.soak,
        ),
    ],
    ids=["completions", "groups of preferences", "tokens"],
)
def test_a_shared_base_gives_the_adapters_of_a_whole_one(
    tmp_path: Path, data: list[dict[str, Any]], held_out: list[dict[str, Any]], settings: dict[str, Any]
) -> None:
    """Seven micro-batches a step, so that one process has one more than the other."""
    write_config(tmp_path)
    write_rows(tmp_path / "data.jsonl", data)
    write_rows(tmp_path / "held_out.jsonl", held_out)
    settings = {
        "train_file": "data.jsonl",
        "eval_file": "held_out.jsonl",
        "micro_batch_size": 1,
        "gradient_accumulation_steps": 7,
        "b_init_std": 0.1,
        "skip_responsibility": 0.2,
        **settings,
    }
    alone = write_config(tmp_path, output_dir="alone", **settings)
    train_ensemble(alone)
    together = write_config(tmp_path, output_dir="together", shard_base=True, **settings)

    finished = train(tmp_path / "config.yaml")

    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.count("wrote ") == 1
    assert_ended_alike(alone, together)


@pytest.mark.slow
def test_a_run_may_be_resumed_on_a_shared_base(tmp_path: Path) -> None:
    alone = write_config(tmp_path, output_dir="alone", max_steps=40)
    train_ensemble(alone)
    run = interrupted(tmp_path)

    finished = train(tmp_path / "config.yaml", "--resume", "--set", "shard_base=true")

    assert finished.returncode == 0, finished.stderr
    assert_close_adapters(alone, run)


LOAD = """
import json, os, sys
from pathlib import Path

import torch

from softspec.train.members.base import load_base
from softspec.train.members.shared import load_shared_base, local_bytes
from softspec.train.members.spec import decoder_layers
from softspec.train.processes import Processes, leave_others

folder = Path(sys.argv[1])
whole = load_base(str(folder / "base"))
shared = load_shared_base(str(folder / "base"), None, "auto", Processes()).eval()
ids = torch.arange(3, 43)[None]
with torch.no_grad():
    gap = (shared.get_decoder()(ids)[0] - whole.eval().get_decoder()(ids)[0]).abs().max().item()
layers = [local_bytes(decoder_layers(model)) for model in (whole, shared)]
rest = [local_bytes(model) - own for model, own in zip((whole, shared), layers)]
(folder / f"rank-{os.environ['RANK']}.json").write_text(json.dumps([gap, layers, rest]))
leave_others()
"""


@pytest.mark.slow
def test_each_process_holds_its_part_of_the_layers_and_all_compute_the_same(tmp_path: Path) -> None:
    write_config(tmp_path)
    (tmp_path / "load.py").write_text(LOAD)

    [finished] = torchrun(str(tmp_path / "load.py"), str(tmp_path))

    assert finished.returncode == 0, finished.stderr
    for rank in (0, 1):
        gap, layers, rest = json.loads((tmp_path / f"rank-{rank}.json").read_text())
        assert gap == 0
        assert layers[1] == layers[0] / 2
        assert rest[1] == rest[0]


def test_mixed_precision_would_keep_every_layer_and_is_refused() -> None:
    two: Any = SimpleNamespace(count=2, mixed_precision="bf16")

    with pytest.raises(ConfigError, match="shard_base and --mixed_precision bf16: every layer would stay"):
        check_shareable(two)


@pytest.mark.parametrize(("variable", "name"), NOT_USED.items(), ids=NOT_USED.values())
def test_what_accelerate_would_be_told_of_in_vain_is_refused(
    monkeypatch: pytest.MonkeyPatch, variable: str, name: str
) -> None:
    monkeypatch.setenv(variable, "true")

    with pytest.raises(ConfigError, match=f"accelerate was told to use {name}, and softspec does not"):
        Processes()


def test_one_process_has_nobody_to_share_the_base_with(tmp_path: Path) -> None:
    config = write_config(tmp_path, shard_base=True)

    with pytest.raises(
        ConfigError, match="shard_base shares the base out among processes, and there is only one"
    ):
        train_ensemble(config)
