"""AdamW for members: each by itself equals stock AdamW, and one without a gradient stays where it is."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from softspec.train.loop.optimizer import MembersAdamW
from softspec.train.loop.state import Training
from softspec.train.loop.step import optimizer_step
from tests.support.tiny_training import chat_rows, preference_rows, prepared, write_config, write_rows

pytestmark = pytest.mark.slow

STARVING = 2
"""The member that gets nothing for a while."""
LOG_WEIGHTS = torch.tensor([0.5, 0.5, 1e-30], dtype=torch.float64).log()


def stacked(seed: int = 0) -> list[nn.Parameter]:
    """Two stacks of three members, as A and B of one layer are."""
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in ((3, 4, 32), (3, 32, 4))]


def stock(weights: list[nn.Parameter], member: int | None) -> tuple[list[nn.Parameter], torch.optim.AdamW]:
    """A copy of all weights or of one member's, and torch's AdamW on it."""
    parts = [nn.Parameter((each if member is None else each[member]).detach().clone()) for each in weights]
    return parts, torch.optim.AdamW(parts, lr=0.01, weight_decay=0.1, fused=True)


def draw_gradients(weights: list[nn.Parameter], step: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(step)
    return [torch.randn(each.shape, generator=generator) for each in weights]


def test_members_that_always_have_a_gradient_move_as_in_one_stock_adamw() -> None:
    """Bit for bit, a gradient of 1e-30 included: it is one."""
    weights = stacked()
    expected, one_for_all = stock(weights, None)
    optimizer = MembersAdamW(weights, 0.01, 0.1)

    for step in range(20):
        gradients = draw_gradients(weights, step)
        for weight, copy, gradient in zip(weights, expected, gradients, strict=True):
            gradient[1] *= 1e-30 if step % 2 else 1
            weight.grad, copy.grad = gradient, gradient.clone()
        optimizer.step(0.01)
        one_for_all.step()

    assert all(torch.equal(one, other) for one, other in zip(weights, expected, strict=True))


def test_a_member_moves_as_if_steps_without_a_gradient_had_never_been() -> None:
    """The oracle is a stock AdamW of each member, which is told of its own gradients only; saved on the way."""
    weights = stacked()
    alone = [stock(weights, member) for member in range(3)]
    optimizer = MembersAdamW(weights, 0.01, 0.1)

    for step in range(30):
        absent = {0: (), 1: (STARVING,), 2: (0, STARVING)}[step // 10]
        gradients = draw_gradients(weights, step)
        for weight, gradient in zip(weights, gradients, strict=True):
            gradient[list(absent)] = 0
            weight.grad = gradient
        for member, (parts, one) in enumerate(alone):
            for part, gradient in zip(parts, gradients, strict=True):
                part.grad = None if member in absent else gradient[member].clone()
            one.step()
        optimizer.step(0.01)
        if step == 14:
            optimizer = reloaded(optimizer, weights)

    for member, (parts, _) in enumerate(alone):
        assert all(torch.equal(weight[member], part) for weight, part in zip(weights, parts, strict=True))
    assert [optimizer.moments(member)[0]["step"].item() for member in range(3)] == [20, 30, 10]


def reloaded(optimizer: MembersAdamW, weights: list[nn.Parameter]) -> MembersAdamW:
    """Another one with its state, which went through a file."""
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    other = MembersAdamW(weights, 0.5, 0.1)
    other.load_state_dict(torch.load(file, weights_only=True))
    return other


def completions(folder: Path, **settings: Any) -> Training:
    """A run whose members differ and have weight decay."""
    settings = {"num_members": 3, "b_init_std": 0.05, "weight_decay": 0.1, "renyi_alpha": 0.05, **settings}
    settings = {"reseed_starved": False, **settings}
    return prepared(folder, max_steps=60, **settings)


def groups(folder: Path, **settings: Any) -> Training:
    """A run of groups, whose micro-batches are routed together, so always in two passes."""
    write_config(folder)
    write_rows(folder / "rows.jsonl", [{**row, "group": n % 3} for n, row in enumerate(chat_rows())])
    return completions(folder, granularity="group", train_file="rows.jsonl", **settings)


def preferences(folder: Path, **settings: Any) -> Training:
    """A run of preferences."""
    write_config(folder)
    write_rows(folder / "rows.jsonl", preference_rows())
    return completions(folder, objective="dpo", train_file="rows.jsonl", **settings)


def tokens(folder: Path, **settings: Any) -> Training:
    """A run whose tokens are routed."""
    return completions(folder, granularity="token", activation={"kind": "always"}, **settings)


def part_of(training: Training, member: int) -> list[Tensor]:
    """A copy of a member's weights and of what the optimizer remembers of it."""
    weights = [weight[member].detach().clone() for weight in training.members.parameters()]
    moments = training.optimizer.moments(member)
    return weights + [value.clone() for kept in moments for value in kept.values()]


def test_a_step_counts_as_a_change_of_the_weights_in_any_precision() -> None:
    """PyTorch's own count, by which a run knows whether its weights are those of a finished step."""
    model = nn.ParameterList(stacked())
    optimizer = MembersAdamW(list(model), 0.01, 0.1)
    for dtype in (torch.float32, torch.float64):
        model.to(dtype)
        before = [weight._version for weight in model]
        for weight in model:
            weight.grad = torch.ones_like(weight)

        optimizer.step(0.01)

        assert all(weight._version > version for weight, version in zip(model, before, strict=True))
        optimizer = MembersAdamW(list(model), 0.01, 0.1)


@pytest.mark.parametrize(("build", "steps"), [(completions, 50), (groups, 4), (preferences, 4), (tokens, 4)])
def test_a_member_with_no_responsibility_for_50_steps_is_bitwise_unchanged(
    tmp_path: Path, build: Callable[..., Training], steps: int
) -> None:
    """After steps that gave it momentum; the others go on."""
    training = build(tmp_path, micro_batch_size=2, gradient_accumulation_steps=2)
    for step in range(3):
        optimizer_step(training, step)
    even, training.log_weights = training.log_weights, LOG_WEIGHTS
    before = [part_of(training, member) for member in range(3)]

    facts = [optimizer_step(training, step) for step in range(3, 3 + steps)]

    assert all(fact.gradient_norms[STARVING] == 0 for fact in facts)
    after = [part_of(training, member) for member in range(3)]
    assert all(torch.equal(one, other) for one, other in zip(before[STARVING], after[STARVING], strict=True))
    assert not any(torch.equal(*each) for each in zip(before[0], after[0], strict=True))
    training.log_weights = even
    assert optimizer_step(training, 3 + steps).gradient_norms[STARVING] > 0
    assert training.optimizer.moments(STARVING)[0]["step"].item() == 4
