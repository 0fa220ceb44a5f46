"""A base's fingerprint: other for whatever changes ids or weights, the same for all else."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import softspec.artefact.fingerprint
from softspec.artefact.fingerprint import fingerprint
from softspec.errors import ConfigError
from tests.support.tiny import tiny_llama


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A small base of its own."""
    return tiny_llama(tmp_path / "base")


def changed_json(name: str, **changes: Any) -> Callable[[Path], None]:
    """A change of keys in one JSON file."""

    def change(folder: Path) -> None:
        path = folder / name
        content = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps(content | changes))

    return change


def written(name: str, text: str) -> Callable[[Path], None]:
    """A file with this content."""

    def write(folder: Path) -> None:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)

    return write


def one_weight_moved(folder: Path) -> None:
    """The middle number of the middle tensor becomes another one."""
    path = folder / "model.safetensors"
    weights = load_file(path)
    name = sorted(weights)[len(weights) // 2]
    weights[name].view(-1)[weights[name].numel() // 2] += 1
    save_file(weights, path, metadata={"format": "pt"})


DECIDING = {
    "one number in the middle of the weights": one_weight_moved,
    "rope in the config": changed_json(
        "config.json", rope_parameters={"rope_theta": 7, "rope_type": "default"}
    ),
    "an inner object of the config": changed_json("config.json", text_config={"hidden_size": 1}),
    "the end of a turn": changed_json("generation_config.json", eos_token_id=[2, 0]),
    "the end of a turn, of the config": changed_json("config.json", eos_token_id=0),
    "the tokenizer": changed_json("tokenizer.json", added_tokens=[]),
    "the tokenizer's settings": changed_json("tokenizer_config.json", add_bos_token=True),
    "the chat template": written("chat_template.jinja", "{{ messages }}"),
    "one more chat template": written("additional_chat_templates/tools.jinja", "{{ tools }}"),
    "an old template file": written("chat_template.json", "{}"),
    "an added token": written("added_tokens.json", '{"<new>": 7}'),
    "a SentencePiece model": written("tokenizer.model", "x"),
    "a vocabulary": written("vocab.txt", "x"),
}
NOT_DECIDING = {
    "who wrote it": changed_json("config.json", transformers_version="1", _name_or_path="elsewhere"),
    "how it is run": changed_json("config.json", use_cache=False, dtype="bfloat16", torch_dtype="bfloat16"),
    "where the tokenizer was": changed_json("tokenizer_config.json", name_or_path="x", is_local=False),
    "defaults of sampling": changed_json("generation_config.json", temperature=0.1, transformers_version="1"),
    "a README": written("README.md", "# A base"),
    "weights that nobody loads": written("pytorch_model.bin", "x"),
    "a file of an optimizer": written("training_args.bin", "x"),
}


@pytest.mark.parametrize("change", DECIDING.values(), ids=list(DECIDING))
def test_what_decides_ids_or_weights_changes_it(base: Path, change: Callable[[Path], None]) -> None:
    before = fingerprint(str(base))

    change(base)

    assert fingerprint(str(base)) != before


@pytest.mark.parametrize("change", NOT_DECIDING.values(), ids=list(NOT_DECIDING))
def test_what_decides_neither_does_not(base: Path, change: Callable[[Path], None]) -> None:
    before = fingerprint(str(base))

    change(base)

    assert fingerprint(str(base)) == before


def test_it_is_of_contents_and_not_of_places(base: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(base, tmp_path / "elsewhere" / "copy")

    assert fingerprint(str(copy)) == fingerprint(str(base))


def test_seeds_of_weights_have_their_own(base: Path, tmp_path: Path) -> None:
    again, other = tiny_llama(tmp_path / "again"), tiny_llama(tmp_path / "other", seed=1)

    assert fingerprint(str(base)) == fingerprint(str(again)) != fingerprint(str(other))


def test_the_order_of_keys_and_of_end_tokens_does_not_count(base: Path) -> None:
    changed_json("generation_config.json", eos_token_id=[0, 2])(base)
    before = fingerprint(str(base))
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(dict(reversed(config.items()))))
    changed_json("generation_config.json", eos_token_id=[2, 0])(base)

    assert fingerprint(str(base)) == before


def as_shards(folder: Path) -> Path:
    """The weights as transformers saves large ones; returns a file of them."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="50KB")
    return sorted(folder.glob("model-*.safetensors"))[1]


def as_pickle(folder: Path) -> Path:
    """The weights as PyTorch's own format; returns their file."""
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    return folder / "pytorch_model.bin"


def as_another_name(folder: Path) -> Path:
    """The weights under a name that only vLLM would find; returns their file."""
    return (folder / "model.safetensors").rename(folder / "weights.safetensors")


@pytest.mark.parametrize("store", [as_shards, as_pickle, as_another_name])
def test_it_covers_weights_in_any_format(base: Path, store: Callable[[Path], Path]) -> None:
    file = store(base)
    before = fingerprint(str(base))
    content = bytearray(file.read_bytes())

    content[len(content) // 2] ^= 1
    file.write_bytes(content)

    assert fingerprint(str(base)) != before


@pytest.mark.parametrize("store", [None, as_pickle], ids=["safetensors", "pickle"])
def test_training_of_one_matrix_is_noticed_in_weights_too_large_to_read_whole(
    base: Path, monkeypatch: pytest.MonkeyPatch, store: Callable[[Path], Path] | None
) -> None:
    """Each tensor in turn, as an optimizer changes it: all of its numbers a little."""
    monkeypatch.setattr(softspec.artefact.fingerprint, "WHOLE_BYTES", 1 << 10)
    monkeypatch.setattr(softspec.artefact.fingerprint, "BLOCK_BYTES", 1 << 6)
    monkeypatch.setattr(softspec.artefact.fingerprint, "STRIDE_BYTES", 1 << 11)
    monkeypatch.setattr(softspec.artefact.fingerprint, "TENSOR_BYTES", 1 << 4)
    weights = load_file(base / "model.safetensors")
    large = [name for name, weight in weights.items() if weight.numel() > 1024 or store is None]
    file = store(base) if store else base / "model.safetensors"
    found = {fingerprint(str(base))}

    for name in large:
        trained = weights | {name: weights[name] * 1.001}
        torch.save(trained, file) if store else save_file(trained, file, metadata={"format": "pt"})
        found.add(fingerprint(str(base)))

    assert len(found) == len(large) + 1


def test_a_large_file_is_read_in_parts(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = fingerprint(str(base))
    monkeypatch.setattr(softspec.artefact.fingerprint, "WHOLE_BYTES", 1 << 10)

    assert fingerprint(str(base)) != whole


@pytest.fixture
def on_the_hub(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The base as the hub's cache keeps it, behind links, without a network; returns its id."""
    cache = tmp_path / "hub"
    folder = cache / "models--owner--name"
    snapshot = folder / "snapshots" / ("a" * 40)
    blobs = shutil.copytree(base, folder / "blobs")
    snapshot.mkdir(parents=True)
    for path in blobs.iterdir():
        (snapshot / path.name).symlink_to(path)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("a" * 40)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return "owner/name"


@pytest.mark.parametrize("revision", [None, "main", "a" * 40], ids=["newest", "branch", "commit"])
def test_the_same_base_in_the_cache_of_the_hub_has_the_same(
    base: Path, on_the_hub: str, revision: str | None
) -> None:
    assert fingerprint(on_the_hub, revision) == fingerprint(str(base))


@pytest.mark.parametrize("revision", [None, "v2"])
def test_a_base_that_is_not_there_is_told_in_one_line(on_the_hub: str, revision: str | None) -> None:
    with pytest.raises(ConfigError, match=r"^cannot load base_model '[^\n]*$"):
        fingerprint("owner/name" if revision else "owner/other", revision)


def test_a_folder_that_is_no_base_is_told_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"has no config\.json; expected a checkpoint"):
        fingerprint(str(tmp_path))


def test_a_damaged_file_is_told_in_one_line(base: Path) -> None:
    (base / "config.json").write_text('{"model_type": ')

    with pytest.raises(ConfigError, match=r"config.json' is not JSON: [^\n]*; copy the base again"):
        fingerprint(str(base))
