"""What is frozen, kept on disk: the same likelihoods and gradients as without, and never taken for something else."""

import errno
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from softspec.artefact.activation import Activation, AlwaysActivation, BlockActivation
from softspec.train.data.units import Example
from softspec.train.members.frozen import Frozen
from softspec.train.members.kept import Kept
from softspec.train.members.likelihood import base_loglik, collate, member_loglik
from softspec.train.members.members import Members
from tests.support.tiny_training import gradients_of, random_examples, random_members

CPU = torch.device("cpu")
BLOCK = BlockActivation(block_size=8)
SIZES = {
    "num_hidden_layers": 4, "hidden_size": 32, "intermediate_size": 64, "vocab_size": 320, "head_dim": 16,
    "num_attention_heads": 2, "num_key_value_heads": 1,
}  # fmt: skip
BASES = {
    "Llama": (LlamaForCausalLM, LlamaConfig(**SIZES, initializer_range=0.4)),
    "Qwen3": (Qwen3ForCausalLM, Qwen3Config(**SIZES, initializer_range=0.4)),
    "Gemma 3 with windows": (
        Gemma3ForCausalLM,
        Gemma3TextConfig(
            **SIZES, initializer_range=0.1, sliding_window=16,
            layer_types=["sliding_attention", "full_attention", "full_attention", "sliding_attention"],
        ),
    ),
}  # fmt: skip


def members_of(base: str = "Llama", layers: tuple[int, ...] | str = (2, 3), seed: int = 0) -> Members:
    """Two random members in float64."""
    kind, config = BASES[base]
    torch.manual_seed(seed)
    return random_members(kind(config).double(), num_members=2, layers=layers)


def keeping(members: Members, folder: Path, base: str = "base") -> Members:
    """The members, which keep what is frozen in the folder."""
    members.frozen = Frozen(members.model, members.spec.layers[0], Kept(folder), base)
    return members


def values(members: Members, examples: list[Example], activation: Activation) -> list[torch.Tensor]:
    """Log-likelihoods of the members and of the base, and the gradients of their sum."""
    for weight in members.parameters():
        weight.grad = None
    loglik = member_loglik(members, collate(examples, activation, CPU))
    (loglik * torch.arange(1, 1 + loglik.numel()).view_as(loglik)).sum().backward()
    return [loglik.detach(), base_loglik(members, collate(examples, activation, CPU)), *gradients_of(members)]


def examples_that_share() -> list[Example]:
    """Random ones, and some that begin as one of them does, or are it."""
    examples = random_examples()
    longest = examples[3]
    return [
        *examples,
        longest,
        Example(longest.prompt_ids, (5, 6, 7, 2)),
        Example(longest.prompt_ids[:-2], (9, 2)),
    ]


@pytest.mark.parametrize(
    ("base", "layers", "activation"),
    [
        *(("Llama", layers, activation) for layers in ("all", (2, 3)) for activation in (BLOCK, AlwaysActivation())),
        *((base, (1, 3), BLOCK) for base in BASES),
        ("Gemma 3 with windows", (2, 3), BlockActivation(block_size=32)),
    ],
    ids=str,
)  # fmt: skip
def test_what_is_kept_changes_no_number(
    tmp_path: Path, base: str, layers: tuple[int, ...] | str, activation: Activation
) -> None:
    members, examples = members_of(base, layers), examples_that_share()
    expected = values(members, examples, activation)

    computed = values(keeping(members, tmp_path), examples, activation)
    read = values(keeping(members, tmp_path), examples[::-1], activation)

    assert expected[0].abs().min() > 1
    for one, other in zip(computed, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(read[0].flip(1), expected[0], rtol=1e-9, atol=1e-9)


def test_a_second_run_computes_nothing_and_reads_the_same_bits(tmp_path: Path) -> None:
    examples = examples_that_share()
    first = values(keeping(members_of(), tmp_path), examples, BLOCK)

    with patch.object(Frozen, "compute", side_effect=AssertionError):
        second = values(keeping(members_of(), tmp_path), examples, BLOCK)

    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


def test_examples_run_alone_or_together_are_kept_alike(tmp_path: Path) -> None:
    """A resumed run meets them in another order than the one before."""
    examples = examples_that_share()
    values(keeping(members_of(), tmp_path / "together"), examples, BLOCK)
    for example in reversed(examples):
        values(keeping(members_of(), tmp_path / "alone"), [example], BLOCK)

    together, alone = (
        {path.name: path.read_bytes() for path in (tmp_path / name).glob("*/*")}
        for name in ("together", "alone")
    )

    assert together == alone


@pytest.mark.parametrize("other", ["weights", "layer", "precision"])
def test_what_was_kept_of_something_else_is_not_taken(tmp_path: Path, other: str) -> None:
    examples = examples_that_share()
    values(keeping(members_of(), tmp_path), examples, BLOCK)
    members = members_of(layers=(1, 2, 3) if other == "layer" else (2, 3), seed=int(other == "weights"))
    if other == "precision":
        members.model.float()
    expected = values(members, examples, BLOCK)

    found = values(keeping(members, tmp_path, base=other), examples, BLOCK)

    tolerance = 1e-3 if other == "precision" else 1e-9
    torch.testing.assert_close(found[0], expected[0], rtol=tolerance, atol=tolerance)


def test_a_damaged_file_is_computed_and_written_again(tmp_path: Path) -> None:
    members, examples = keeping(members_of(), tmp_path), examples_that_share()
    expected = values(members, examples, BLOCK)
    files = {path: path.read_bytes() for path in tmp_path.glob("*/*")}
    for number, (path, content) in enumerate(files.items()):
        path.write_bytes(content[: (0, 5, len(content) - 1)[number % 3]])

    found = values(members, examples, BLOCK)

    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    assert {path: path.read_bytes() for path in tmp_path.glob("*/*")} == files


def test_a_full_disk_costs_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    members, examples = members_of(), examples_that_share()
    expected = values(members, examples, BLOCK)

    with patch("os.replace", side_effect=OSError(errno.ENOSPC, "No space left on device")):
        found = values(keeping(members, tmp_path), examples, BLOCK)

    torch.testing.assert_close(found[0], expected[0], rtol=1e-9, atol=1e-9)
    assert capsys.readouterr().err.count("No space left on device") == 1
    assert not list(tmp_path.glob("*/*"))
