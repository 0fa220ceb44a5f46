"""Members: K adapters that start apart, are clipped apart, and never disturb the base."""

import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from softspec.artefact.activation import AlwaysActivation
from softspec.errors import ConfigError
from softspec.train.members.base import load_skeleton
from softspec.train.members.likelihood import collate, member_loglik
from softspec.train.members.members import Members
from softspec.train.members.spec import LoraSpec, resolve_spec
from tests.support.tiny import TARGET_MODULES, tiny_llama
from tests.support.tiny_training import random_examples, tiny_members

SPEC = LoraSpec(rank=4, lora_alpha=8, target_modules=("q_proj", "v_proj"), layers=(0, 1))


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return tiny_llama(tmp_path / "base", layers=6)


def test_members_start_with_different_a_and_zero_b(base: Path) -> None:
    """Equal members would get equal gradients and stay one model for ever."""
    members = Members(AutoModelForCausalLM.from_pretrained(base), SPEC, num_members=3)

    for linear in members.linears.values():
        assert not torch.equal(linear.lora_a[0], linear.lora_a[1])
        assert not torch.equal(linear.lora_a[1], linear.lora_a[2])
        assert not linear.lora_b.any()
    assert not members.moved().any()


def test_a_member_starts_the_same_in_ensembles_of_any_size(base: Path) -> None:
    small = Members(AutoModelForCausalLM.from_pretrained(base), SPEC, num_members=1, seed=5)
    large = Members(AutoModelForCausalLM.from_pretrained(base), SPEC, num_members=4, seed=5)

    for name, weight in small.adapter_state(0).items():
        assert torch.equal(weight, large.adapter_state(0)[name])


def test_a_starts_with_the_scale_that_peft_uses(base: Path) -> None:
    members = Members(AutoModelForCausalLM.from_pretrained(base), SPEC, num_members=8)
    model = AutoModelForCausalLM.from_pretrained(base)
    stock = get_peft_model(
        model, LoraConfig(r=4, target_modules=["q_proj", "v_proj"], layers_to_transform=[0, 1])
    )

    ours = torch.cat([linear.lora_a.flatten() for linear in members.linears.values()])
    theirs = torch.cat([w.flatten() for name, w in stock.named_parameters() if "lora_A" in name])

    assert ours.abs().max().item() == pytest.approx(theirs.abs().max().item(), rel=0.05)
    assert ours.std().item() == pytest.approx(theirs.std().item(), rel=0.1)


def test_weights_have_the_names_that_peft_expects(base: Path) -> None:
    members = Members(AutoModelForCausalLM.from_pretrained(base), SPEC, num_members=2)
    model = AutoModelForCausalLM.from_pretrained(base)
    stock = get_peft_model(
        model, LoraConfig(r=4, target_modules=["q_proj", "v_proj"], layers_to_transform=[0, 1])
    )
    expected = {
        name.replace(".default", ""): w.shape for name, w in stock.named_parameters() if "lora_" in name
    }

    assert {name: weight.shape for name, weight in members.adapter_state(1).items()} == expected


def test_an_adapter_survives_storing_and_loading(tmp_path: Path) -> None:
    members = tiny_members(tmp_path)
    first, second = members.adapter_state(0), members.adapter_state(1)

    members.load_adapter(1, first)
    members.load_adapter(0, second)

    assert all(torch.equal(weight, first[name]) for name, weight in members.adapter_state(1).items())
    assert all(torch.equal(weight, second[name]) for name, weight in members.adapter_state(0).items())


def test_only_adapters_get_gradients(tmp_path: Path) -> None:
    members = tiny_members(tmp_path)

    member_loglik(
        members, collate(random_examples(), AlwaysActivation(), torch.device("cpu"))
    ).sum().backward()

    assert all(weight.grad is not None for weight in members.parameters())
    with members.removed() as model:
        assert all(weight.grad is None for weight in model.parameters())


def test_each_member_is_clipped_by_itself(tmp_path: Path) -> None:
    """One large member must not slow the others down."""
    members = tiny_members(tmp_path, num_members=2)
    for weight in members.parameters():
        weight.grad = torch.ones_like(weight)
        weight.grad[1] *= 1e-4
    count = sum(weight[0].numel() for weight in members.parameters())

    norms = members.clip_gradients(1.0)

    torch.testing.assert_close(norms, torch.tensor([1.0, 1e-4]) * count**0.5)
    squares = [
        weight.grad.square().flatten(1).sum(1) for weight in members.parameters() if weight.grad is not None
    ]
    clipped = torch.stack(squares).sum(0).sqrt()
    torch.testing.assert_close(clipped, torch.tensor([1.0, 1e-4 * count**0.5]), rtol=1e-4, atol=0)


def test_a_limit_of_zero_turns_clipping_off(tmp_path: Path) -> None:
    members = tiny_members(tmp_path)
    for weight in members.parameters():
        weight.grad = torch.full_like(weight, 10)

    members.clip_gradients(0)

    assert all(weight.grad is not None and (weight.grad == 10).all() for weight in members.parameters())


def test_all_linear_means_every_linear_layer_of_the_decoder_and_no_head(base: Path) -> None:
    spec = resolve_spec(load_skeleton(str(base)), 4, 8, "all-linear", "all")

    assert set(spec.target_modules) == set(TARGET_MODULES)
    assert spec.layers == (0, 1, 2, 3, 4, 5)


def test_the_top_third_is_the_last_layers(base: Path) -> None:
    assert resolve_spec(load_skeleton(str(base)), 4, 8, "all-linear", "top_third").layers == (4, 5)


@pytest.mark.parametrize("name", ["q_prj", "lm_head", "embed_tokens", "mlp"])
def test_a_module_that_is_no_decoder_linear_is_refused(base: Path, name: str) -> None:
    with pytest.raises(
        ConfigError, match=f"unknown target module '{name}': expected some of down_proj, gate"
    ):
        resolve_spec(load_skeleton(str(base)), 4, 8, ("q_proj", name), "all")


@pytest.mark.parametrize("layers", [(6,), (-1, 2)])
def test_a_layer_out_of_range_is_refused(base: Path, layers: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="expected numbers from 0 to 5"):
        resolve_spec(load_skeleton(str(base)), 4, 8, "all-linear", layers)


def test_a_quantised_base_is_refused_before_its_weights_are_loaded(base: Path) -> None:
    config = json.loads((base / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "fp8"}
    (base / "config.json").write_text(json.dumps(config))

    with pytest.raises(ConfigError, match=r"is quantised \(fp8\): train on the same model without"):
        load_skeleton(str(base))
