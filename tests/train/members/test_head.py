"""Logits a few positions at a time: nothing changes but the memory."""

from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import (
    Cohere2Config,
    Cohere2ForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
)

from softspec.artefact.activation import AlwaysActivation
from softspec.train.loop.step import optimizer_step
from softspec.train.members.head import AT_ONCE
from softspec.train.members.likelihood import (
    collate,
    completion_logprobs,
    completion_logprobs_in_parts,
    token_loglik,
)
from softspec.train.members.members import Members
from softspec.train.members.pairs import Pairs
from softspec.train.run import held_out_scores
from tests.support.peak_memory import training_of
from tests.support.tiny_training import random_examples, random_members, tiny_members

CPU = torch.device("cpu")
TWO_POSITIONS = 2 * 320 + 100
"""Logits of a vocabulary of 320."""
SIZES = {
    "vocab_size": 320, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16, "initializer_range": 0.4,
}  # fmt: skip


def exact(folder: Path) -> Members:
    """Three members in float64."""
    members = tiny_members(folder, num_layers=1)
    members.model.double()
    return members


def whole(members: Members, pairs: Pairs) -> Tensor:
    """Log-probabilities of all completion tokens of the pairs, from all logits of the model at once."""
    examples, found = random_examples(), []
    for example, member in zip(pairs.examples.tolist(), pairs.members.tolist(), strict=True):
        ids = torch.tensor([examples[example].prompt_ids + examples[example].completion_ids])
        one = Pairs(torch.tensor([0]), torch.tensor([member]), 1)
        with members.running(one):
            logprobs = members.model(input_ids=ids).logits[0].log_softmax(-1)
        answer = len(examples[example].completion_ids)
        found.append(logprobs[-answer - 1 : -1].gather(1, ids[0, -answer:, None])[:, 0])
    return torch.cat(found)


@pytest.mark.parametrize(
    "pairs",
    [Pairs.all_pairs(3, 7, CPU), Pairs(torch.tensor([1, 4, 6]), torch.tensor([2, 0, 2]), 7)],
    ids=["every pair", "some pairs"],
)
def test_parts_have_the_gradient_of_the_whole(tmp_path: Path, pairs: Pairs) -> None:
    """In float64, against the model's own logits without any cutting."""
    members = exact(tmp_path)
    batch = collate(random_examples(), AlwaysActivation(), CPU)

    tokens = token_loglik(members, batch, pairs, at_once=TWO_POSITIONS)

    pull = torch.randn(len(tokens), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = torch.autograd.grad((pull * tokens).sum(), members.parameters())
    expected_tokens = whole(members, pairs)
    expected = torch.autograd.grad((pull * expected_tokens).sum(), members.parameters())
    torch.testing.assert_close(tokens, expected_tokens, rtol=1e-10, atol=1e-10)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-9)


def test_predictives_come_in_parts_and_are_the_same(tmp_path: Path) -> None:
    members = exact(tmp_path)
    batch = collate(random_examples(), AlwaysActivation(), CPU)

    parts = list(completion_logprobs_in_parts(members, batch, at_once=3 * TWO_POSITIONS))

    assert {part.shape[1] for part in parts[:-1]} == {2}
    torch.testing.assert_close(torch.cat(parts, 1), completion_logprobs(members, batch))
    targets = batch.targets[batch.supervised].expand(3, -1)[..., None]
    chosen = torch.cat(parts, 1).gather(-1, targets)[..., 0]
    with torch.no_grad():
        expected = whole(members, Pairs.all_pairs(3, 7, CPU)).view(3, -1)
    torch.testing.assert_close(chosen, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    "build",
    [
        lambda: Gemma2ForCausalLM(Gemma2Config(**SIZES, final_logit_softcapping=2.0)),
        lambda: GraniteForCausalLM(GraniteConfig(**SIZES, logits_scaling=3.0)),
        lambda: Cohere2ForCausalLM(Cohere2Config(**SIZES, logit_scale=0.25)),
        lambda: MixtralForCausalLM(MixtralConfig(**SIZES, num_local_experts=2, output_router_logits=True)),
    ],
    ids=["soft cap", "scaling", "logit scale", "router outputs"],
)
def test_what_a_model_does_to_its_logits_is_done(build: Callable[[], PreTrainedModel]) -> None:
    torch.manual_seed(0)
    members = random_members(build(), num_members=2)
    batch = collate(random_examples(), AlwaysActivation(), CPU)
    pairs = Pairs.all_pairs(2, 7, CPU)

    with torch.no_grad():
        found = token_loglik(members, batch, pairs, at_once=TWO_POSITIONS)
        expected = whole(members, pairs)

    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-5)


class Largest(TorchDispatchMode):
    """Watches every tensor that is computed for the largest whose last dimension is the vocabulary."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.vocabulary, self.entries = vocabulary, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and leaf.ndim and leaf.shape[-1] == self.vocabulary:
                self.entries = max(self.entries, leaf.numel())
        return result


@pytest.mark.slow
def test_neither_a_step_nor_an_evaluation_ever_has_all_logits(tmp_path: Path) -> None:
    """Two members, two answers of ten tokens and a million words: 42 million logits, of which 34 may be there."""
    shape = {"members": 2, "examples": 2, "tokens": 10, "vocabulary": 2**20, "hidden": 8, "layers": 1}
    training = training_of(Namespace(**shape, two_passes=False), tmp_path)

    with Largest(2**20) as step:
        optimizer_step(training, 0)
        training.active_members = 0.0  # which leads to two passes
        optimizer_step(training, 1)
    with Largest(2**20) as evaluation:
        held_out_scores(training)

    assert 2**20 < evaluation.entries <= step.entries <= AT_ONCE
