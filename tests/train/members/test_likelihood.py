"""Log-likelihoods (K, B): equal to stock PEFT, one example and one member at a time, in value and gradient."""

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    PretrainedConfig,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from softspec.artefact.activation import Activation, AlwaysActivation, BlockActivation, shared_tokens
from softspec.artefact.manifest import BaseModelRef, Manifest, member_dir
from softspec.maths.mixture import sequence_loglik, uniform_log_weights
from softspec.train.data.units import Example
from softspec.train.members.likelihood import base_loglik, collate, completion_logprobs, member_loglik
from softspec.train.members.load import load_members
from softspec.train.members.members import Members
from softspec.train.members.spec import decoder_layers, resolve_spec
from softspec.train.result.export import peft_completion_logprobs, peft_loglik, write_ensemble
from tests.support.tiny import random_adapters, tiny_llama
from tests.support.tiny_training import random_examples, random_members, tiny_members

CPU = torch.device("cpu")
ALWAYS = AlwaysActivation()
ACTIVATIONS: list[Activation] = [ALWAYS, BlockActivation(block_size=32), BlockActivation(block_size=1)]
ACTIVATION_NAMES = ["always", "block of 32", "block of 1"]


@pytest.fixture(scope="module")
def members(tmp_path_factory: pytest.TempPathFactory) -> Members:
    return tiny_members(tmp_path_factory.mktemp("base"))


def score(members: Members, examples: list[Example], activation: Activation = ALWAYS) -> Tensor:
    """(K, B) without gradients."""
    with torch.no_grad():
        return member_loglik(members, collate(examples, activation, CPU))


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=ACTIVATION_NAMES)
def test_members_loaded_from_disk_score_as_stock_peft_does(tmp_path: Path, activation: Activation) -> None:
    base = tiny_llama(tmp_path / "base", layers=3)
    ensemble = random_adapters(base, tmp_path / "ensemble", num_members=3)
    members = load_members(ensemble, AutoModelForCausalLM.from_pretrained(base))
    examples = random_examples()

    ours = score(members, examples, activation)

    with members.removed() as model:
        stock = peft_loglik(ensemble, model, 3, examples, activation)
    torch.testing.assert_close(ours, stock, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    "config",
    [
        Qwen3Config(
            num_hidden_layers=3, hidden_size=32, intermediate_size=64, vocab_size=320, head_dim=16,
            num_attention_heads=2, num_key_value_heads=1, initializer_range=0.4,
        ),
        Gemma3TextConfig(
            num_hidden_layers=3, hidden_size=32, intermediate_size=64, vocab_size=320, head_dim=16,
            num_attention_heads=2, num_key_value_heads=1, initializer_range=0.1, sliding_window=16,
            layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        ),
    ],
    ids=["Qwen3", "Gemma 3 with sliding windows"],
)  # fmt: skip
def test_other_architectures_score_as_stock_peft_does(tmp_path: Path, config: PretrainedConfig) -> None:
    torch.manual_seed(0)
    model = (Qwen3ForCausalLM if isinstance(config, Qwen3Config) else Gemma3ForCausalLM)(config)
    members = random_members(model, num_members=2, layers=(1, 2))
    activation = BlockActivation(block_size=32)
    manifest = Manifest(
        name="x",
        base_model=BaseModelRef(path="x"),
        num_members=2,
        log_weights=tuple(uniform_log_weights(2).tolist()),
        renyi_alpha=1,
    )
    write_ensemble(tmp_path / "ensemble", members, manifest)
    examples = random_examples()

    ours = score(members, examples, activation)

    with members.removed() as base:
        stock = peft_loglik(tmp_path / "ensemble", base, 2, examples, activation)
    torch.testing.assert_close(ours, stock, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=ACTIVATION_NAMES)
def test_padding_batch_order_and_batch_mates_change_nothing(members: Members, activation: Activation) -> None:
    examples = random_examples()

    together = score(members, examples, activation)
    reversed_order = score(members, examples[::-1], activation).flip(1)
    alone = torch.cat([score(members, [example], activation) for example in examples], 1)

    torch.testing.assert_close(reversed_order, together, atol=1e-4, rtol=0)
    torch.testing.assert_close(alone, together, atol=1e-4, rtol=0)


def test_only_completion_tokens_count(members: Members) -> None:
    """A prompt token moved into the completion adds its own log-probability; the prompt alone adds nothing."""
    whole = random_examples(((4, 3),))[0]
    longer = Example(whole.prompt_ids[:-1], whole.prompt_ids[-1:] + whole.completion_ids)
    last_prompt_token = Example(whole.prompt_ids[:-1], whole.prompt_ids[-1:])

    parts = score(members, [whole]) + score(members, [last_prompt_token])

    torch.testing.assert_close(parts, score(members, [longer]), atol=1e-4, rtol=0)


def test_with_adapters_off_the_model_is_the_base_bit_for_bit(tmp_path: Path) -> None:
    base = AutoModelForCausalLM.from_pretrained(tiny_llama(tmp_path))
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        before = base(ids).logits
    members = random_members(base)

    with torch.no_grad():
        off = members.model(ids).logits
    with members.removed() as model, torch.no_grad():
        removed = model(ids).logits

    assert torch.equal(off, before)
    assert torch.equal(removed, before)


def test_untrained_members_score_as_the_base(tmp_path: Path) -> None:
    """B starts at zero, so every member is the base until the first step."""
    model = AutoModelForCausalLM.from_pretrained(tiny_llama(tmp_path))
    members = Members(model, resolve_spec(model, 4, 8, "all-linear", "all"), num_members=3)
    examples = random_examples()

    base = base_loglik(members, collate(examples, ALWAYS, CPU))

    torch.testing.assert_close(score(members, examples), base.expand(3, -1), atol=1e-4, rtol=0)


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=ACTIVATION_NAMES)
def test_gradients_equal_those_of_stock_peft(tmp_path: Path, activation: Activation) -> None:
    """Stock PEFT, one member and one example at a time, in float64; the weights stand for responsibilities."""
    base = tiny_llama(tmp_path / "base", layers=3)
    ensemble = random_adapters(base, tmp_path / "ensemble", num_members=2)
    members = load_members(ensemble, AutoModelForCausalLM.from_pretrained(base).double())
    for weight in members.parameters():
        weight.data = weight.data.double()
    examples = random_examples()
    shares = torch.rand(2, len(examples), dtype=torch.float64, generator=torch.Generator().manual_seed(3))

    (shares * member_loglik(members, collate(examples, activation, CPU))).sum().backward()

    ours = dict(members.named_weights())
    for member in range(2):
        model = AutoModelForCausalLM.from_pretrained(base)
        stock = PeftModel.from_pretrained(model, member_dir(ensemble, member), is_trainable=True).double()
        for example, share in zip(examples, shares[member], strict=True):
            (share * peft_completion_logprobs(stock, example, activation).sum()).backward()
        for name, weight in stock.named_parameters():
            if weight.requires_grad:
                joint = ours[name.replace(".default", "")].grad
                assert joint is not None
                torch.testing.assert_close(joint[member], weight.grad, atol=1e-4, rtol=1e-5)


def test_layers_below_the_first_adapter_run_once_per_example(tmp_path: Path) -> None:
    members = tiny_members(tmp_path, num_members=3, layers=(2,), num_layers=3)
    seen: list[int] = []
    for layer in decoder_layers(members.model):
        layer.register_forward_hook(lambda layer, args, output: seen.append(len(output)))
    examples = random_examples(((4, 2), (6, 3)))

    score(members, examples)

    assert seen == [2, 2, 6]


def test_the_shared_prompt_runs_once_per_example_and_without_gradients(tmp_path: Path) -> None:
    members = tiny_members(tmp_path, num_members=3, num_layers=1)
    seen: list[tuple[int, int, bool]] = []
    decoder_layers(members.model)[0].register_forward_hook(
        lambda layer, args, output: seen.append((*output.shape[:2], output.requires_grad))
    )

    member_loglik(members, collate(random_examples(((70, 2),)), BlockActivation(block_size=32), CPU))

    assert shared_tokens(BlockActivation(block_size=32).block_size, 70) == 64
    assert seen == [(1, 64, False), (3, 7, True)]


def test_the_chain_rule_of_the_mixture_equals_its_sequence_scores(members: Members) -> None:
    """Prefix weights at every token multiply up to the whole-completion mixture that training scores."""
    example = random_examples(((5, 6),))[0]
    batch = collate([example], ALWAYS, CPU)
    log_weights = uniform_log_weights(3)
    steps = completion_logprobs(members, batch)[:, range(6), list(example.completion_ids)].double()

    running, total = log_weights, torch.zeros((), dtype=torch.float64)
    for token in steps.T:
        joint = running + token
        total = total + joint.logsumexp(0)
        running = joint.log_softmax(0)

    expected = sequence_loglik(log_weights, score(members, [example]))[0]
    torch.testing.assert_close(total, expected, atol=1e-4, rtol=0)


def test_the_mixture_is_never_worse_than_a_member_and_its_share(members: Members) -> None:
    loglik = score(members, random_examples())
    log_weights = uniform_log_weights(3)

    mixture = sequence_loglik(log_weights, loglik)

    assert (mixture >= (loglik + log_weights[:, None]).amax(0)).all()
