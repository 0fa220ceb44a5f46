"""A base is loaded whole or refused in one line: no weights that transformers made up."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from softspec.artefact.weights import load_whole
from softspec.errors import ConfigError
from softspec.reference import ReferenceEnsemble
from softspec.train.members.base import load_skeleton, load_tokenizer
from tests.support.tiny import random_adapters, tiny_config, tiny_llama

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4cac19622fc3ada9\nsize 538090408\n"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A small base of its own."""
    return tiny_llama(tmp_path / "base")


def renamed(folder: Path) -> None:
    """What `torch.compile` makes of every name."""
    weights = load_file(folder / "model.safetensors")
    save_file({f"_orig_mod.{name}": weight for name, weight in weights.items()}, folder / "model.safetensors")


def one_missing(folder: Path) -> None:
    """The weights without one of the second layer."""
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def untied(folder: Path) -> None:
    """A configuration whose output head is a matrix of its own, which no file has."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}))


def wider(folder: Path) -> None:
    """The configuration of a model of another size."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 96}))


def deeper(folder: Path) -> None:
    """The configuration of a model with one more layer."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))


def cut(folder: Path) -> None:
    """Half a download."""
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])


def empty(folder: Path) -> None:
    """A download that never began."""
    (folder / "model.safetensors").write_bytes(b"")


def not_fetched(folder: Path) -> None:
    """A clone without Git LFS."""
    (folder / "model.safetensors").write_text(POINTER)


def no_pickle(folder: Path) -> None:
    """A PyTorch file that is none."""
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"garbage")


def shard_missing(folder: Path) -> None:
    """A sharded checkpoint of which one file was not copied."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="50KB")
    sorted(folder.glob("model-*.safetensors"))[1].unlink()


def no_weights(folder: Path) -> None:
    """Everything but the weights."""
    (folder / "model.safetensors").unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (renamed, r"lack \d+ of the model's weights, first .*\(they have '_orig_mod\.model"),
        (one_missing, "lack 1 of the model's weights, first 'model.layers.1.mlp.up_proj.weight'"),
        (untied, "lack 1 of the model's weights, first 'lm_head.weight'"),
        (deeper, "lack 9 of the model's weights, first 'model.layers.2"),
        (wider, "size mismatch|mismatched|shape"),
        (cut, "SafetensorError"),
        (empty, "SafetensorError"),
        (not_fetched, r"'model\.safetensors' is a pointer of Git LFS .* git lfs pull"),
        (no_pickle, "cannot load base_model"),
        (shard_missing, "cannot load base_model"),
        (no_weights, "no file named model.safetensors"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_base_that_is_not_all_there_is_refused_in_one_line(
    base: Path, damage: Callable[[Path], None], message: str, caplog: pytest.LogCaptureFixture
) -> None:
    damage(base)
    caplog.clear()

    with pytest.raises(ConfigError, match=message) as error:
        load_whole(str(base), None, torch.float32)

    assert "\n" not in str(error.value)
    assert str(base) in str(error.value)
    assert caplog.records == []


def test_tied_weights_need_no_file_of_their_own(base: Path) -> None:
    model = load_whole(str(base), None, torch.float32)

    assert "lm_head.weight" not in load_file(base / "model.safetensors")
    assert torch.equal(
        model.lm_head.weight, load_file(base / "model.safetensors")["model.embed_tokens.weight"]
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_weights_are_those_of_the_files(base: Path, dtype: torch.dtype) -> None:
    model = load_whole(str(base), None, dtype)

    for name, weight in load_file(base / "model.safetensors").items():
        assert torch.equal(model.state_dict()[name], weight.to(dtype)), name


def test_a_base_with_an_adapter_in_it_is_refused(tmp_path: Path) -> None:
    """transformers would add it without a word, and vLLM would not."""
    model = LlamaForCausalLM(tiny_config())
    model.save_pretrained(tmp_path)
    get_peft_model(model, LoraConfig(target_modules=["q_proj"])).save_pretrained(tmp_path)

    with pytest.raises(ConfigError, match="has an adapter of its own"):
        load_whole(str(tmp_path), None, torch.float32)


def test_the_reference_refuses_such_a_base_too(base: Path, tmp_path: Path) -> None:
    ensemble = random_adapters(base, tmp_path / "ensemble", num_members=2)
    one_missing(base)

    with pytest.raises(ConfigError, match="lack 1 of the model's weights"):
        ReferenceEnsemble.load(base, ensemble)


def test_a_base_without_tokenizer_is_told_so(base: Path) -> None:
    for path in base.glob("tokenizer*"):
        path.unlink()

    with pytest.raises(ConfigError, match=r"has no tokenizer: expected its files, .* beside config\.json$"):
        load_tokenizer(str(base))


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("content", [POINTER, "", "{"], ids=["pointer", "empty", "cut"])
def test_a_damaged_tokenizer_is_one_line(base: Path, name: str, content: str) -> None:
    (base / name).write_text(content)

    with pytest.raises(ConfigError, match=r"^cannot load base_model [^\n]+$") as error:
        load_tokenizer(str(base))

    assert ("pointer of Git LFS" in str(error.value)) == (content == POINTER)


@pytest.mark.parametrize(
    "content",
    [
        POINTER,
        "",
        "{",
        "[]",
        "{}",
        '{"model_type": "llama", "hidden_size": "wide"}',
        '{"model_type": "none"}',
    ],
    ids=["pointer", "empty", "cut", "list", "no keys", "a word for a size", "unknown"],
)
def test_a_damaged_configuration_is_one_line(base: Path, content: str) -> None:
    (base / "config.json").write_text(content)

    with pytest.raises(ConfigError, match=r"^cannot load base_model [^\n]+$"):
        load_skeleton(str(base))
