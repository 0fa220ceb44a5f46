"""Adapters that are cut off, or belong to another base, are told before an engine takes them without a word."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from softspec.artefact.fit import lowest_layer, require_fit
from softspec.errors import ManifestError
from tests.support.tiny import random_adapters, tiny_llama

WEIGHTS = "adapter_model.safetensors"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("models") / "base", layers=3)


@pytest.fixture
def adapter(base: Path, tmp_path: Path) -> Path:
    return random_adapters(base, tmp_path / "ensemble", num_members=1) / "member-0"


def rewritten(adapter: Path, keep: str = "", **config: Any) -> Path:
    """The adapter with the tensors whose names contain `keep` only, and other settings."""
    tensors = load_file(adapter / WEIGHTS)
    save_file({name: tensor for name, tensor in tensors.items() if keep in name}, adapter / WEIGHTS)
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **config}))
    return adapter


def test_adapter_of_the_base_fits(adapter: Path, base: Path) -> None:
    require_fit(adapter, base)


@pytest.mark.parametrize("bytes_left", [0, 7, 200, -1])
def test_cut_off_file_is_told(adapter: Path, base: Path, bytes_left: int) -> None:
    whole = (adapter / WEIGHTS).read_bytes()
    (adapter / WEIGHTS).write_bytes(whole[:bytes_left])

    with pytest.raises(ManifestError, match=r"member-0.* cannot be read .*: it is cut off"):
        require_fit(adapter, base)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_no_numbers_are_told(adapter: Path, base: Path, value: float) -> None:
    tensors = load_file(adapter / WEIGHTS)
    next(reversed(tensors.values())).view(-1)[-1] = value
    save_file(tensors, adapter / WEIGHTS)

    with pytest.raises(ManifestError, match=r"member-0.*': 'base_model.*' has NaN or infinite weights"):
        require_fit(adapter, base)


@pytest.mark.parametrize(
    ("others", "complaint"),
    [
        ({"hidden": 64, "layers": 3}, r"is 64 x 128, expected 32 x 64"),
        ({"layers": 5}, r"the base has no 'model\.layers\.3\.\w+\.\w+'"),
        ({"layers": 2}, r"it has nothing for 'model\.layers\.2\.\w+\.\w+'"),
    ],
    ids=["wider", "deeper", "shallower"],
)
def test_adapter_of_another_base_is_told(
    base: Path, tmp_path: Path, others: dict[str, int], complaint: str
) -> None:
    """An engine would copy the smaller matrix into a corner, and pass over layers that it lacks."""
    stranger = tiny_llama(tmp_path / "stranger", **others)
    adapter = random_adapters(stranger, tmp_path / "ensemble", num_members=1) / "member-0"

    with pytest.raises(ManifestError, match=complaint):
        require_fit(adapter, base)


def test_half_a_pair_is_told(adapter: Path, base: Path) -> None:
    with pytest.raises(ManifestError, match="has no pair of LoRA matrices"):
        require_fit(rewritten(adapter, keep="lora_A"), base)


@pytest.mark.parametrize(
    "config",
    [{"layers_to_transform": [1]}, {"target_modules": r".*layers\.1\..*"}],
    ids=["listed", "pattern"],
)
def test_adapter_for_some_layers_only_fits(adapter: Path, base: Path, config: dict[str, Any]) -> None:
    require_fit(rewritten(adapter, keep="layers.1.", **config), base)


def test_sharded_base_is_compared_as_a_whole(adapter: Path, base: Path, tmp_path: Path) -> None:
    sharded = tmp_path / "sharded"
    AutoModelForCausalLM.from_pretrained(base).save_pretrained(sharded, max_shard_size="20KB")
    assert len(list(sharded.glob("*.safetensors"))) > 1

    require_fit(adapter, sharded)


def test_matrices_that_lie_on_their_side_fit(tmp_path: Path) -> None:
    """GPT-2 keeps its weights the other way round."""
    GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=1, n_head=1, vocab_size=10)).save_pretrained(
        tmp_path / "base"
    )
    adapter = tmp_path / "member-0"
    adapter.mkdir()
    module = "base_model.model.transformer.h.0.attn.c_attn"
    matrices = {f"{module}.lora_A.weight": torch.zeros(2, 8), f"{module}.lora_B.weight": torch.zeros(24, 2)}
    save_file(matrices, adapter / WEIGHTS)
    (adapter / "adapter_config.json").write_text(json.dumps({"target_modules": ["c_attn"]}))

    require_fit(adapter, tmp_path / "base")


@pytest.mark.parametrize("is_packed", [False, True], ids=["no safetensors", "packed"])
def test_base_that_shows_no_shapes_is_not_compared(
    adapter: Path, base: Path, tmp_path: Path, is_packed: bool
) -> None:
    other = Path(shutil.copytree(base, tmp_path / "other"))
    tensors = load_file(other / "model.safetensors")
    (other / "model.safetensors").unlink()
    if is_packed:
        packed = {name: torch.zeros(5, 1, dtype=torch.uint8) for name in tensors}
        save_file(packed, other / "model.safetensors")

    require_fit(adapter, other)


@pytest.mark.parametrize(("layers", "lowest"), [(None, 0), ((1, 2), 1), ((2,), 2)])
def test_lowest_layer_is_that_of_the_first_adapter(
    base: Path, tmp_path: Path, layers: tuple[int, ...] | None, lowest: int
) -> None:
    adapter = random_adapters(base, tmp_path / "ensemble", num_members=1, layers=layers) / "member-0"

    assert lowest_layer(adapter) == lowest


def test_adapter_of_the_vocabulary_alone_lies_above_all_layers_but_names_none(
    base: Path, tmp_path: Path
) -> None:
    adapter = random_adapters(base, tmp_path / "ensemble", num_members=1, layers=(2,)) / "member-0"
    tensors = load_file(adapter / WEIGHTS)
    head = {"base_model.model.lm_head.lora_A.weight": torch.zeros(4, 32)}

    save_file({**tensors, **head}, adapter / WEIGHTS)
    assert lowest_layer(adapter) == 2
    save_file(head, adapter / WEIGHTS)
    assert lowest_layer(adapter) == 0


def test_adapter_outside_numbered_layers_may_act_anywhere(base: Path, tmp_path: Path) -> None:
    adapter = random_adapters(base, tmp_path / "ensemble", num_members=1, layers=(2,)) / "member-0"
    embedding = {"base_model.model.model.embed_tokens.lora_embedding_A": torch.zeros(4, 320)}
    save_file({**load_file(adapter / WEIGHTS), **embedding}, adapter / WEIGHTS)

    assert lowest_layer(adapter) == 0
