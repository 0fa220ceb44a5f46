"""The joint update: what the alpha-Renyi loss does to real adapters (method.md section 5, the invariants for SFT)."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from softspec.artefact.activation import AlwaysActivation
from softspec.maths.mixture import uniform_log_weights
from softspec.maths.renyi import renyi_loss, responsibilities
from softspec.train.loop.state import Training
from softspec.train.loop.step import optimizer_step
from softspec.train.members.likelihood import collate, member_loglik
from tests.support.tiny_training import examples_of, prepared, random_examples, tiny_members

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")


def weights(training: Training, member: int) -> Tensor:
    """All adapter weights of one member, flat."""
    return torch.cat([weight[member].detach().flatten() for weight in training.members.parameters()])


@pytest.mark.parametrize("renyi_alpha", [0.0, 0.05, 0.8, 1.0])
def test_the_gradient_is_that_of_the_responsibility_weighted_nll(tmp_path: Path, renyi_alpha: float) -> None:
    members = tiny_members(tmp_path)
    batch = collate(random_examples(), AlwaysActivation(), CPU)
    log_weights = uniform_log_weights(3)

    loglik = member_loglik(members, batch)
    loss = renyi_loss(loglik, log_weights, renyi_alpha).mean()
    exact = torch.autograd.grad(loss, members.parameters(), retain_graph=True)
    shares = responsibilities(loglik.detach(), log_weights, renyi_alpha)
    weighted = torch.autograd.grad(-(shares * loglik).sum(0).mean(), members.parameters())

    for left, right in zip(exact, weighted, strict=True):
        torch.testing.assert_close(left, right, atol=1e-6, rtol=1e-5)


def test_the_gradient_agrees_with_finite_differences(tmp_path: Path) -> None:
    members = tiny_members(tmp_path, num_layers=1)
    members.model.double()
    for weight in members.parameters():
        weight.data = weight.data.double()
    batch = collate(random_examples(((3, 4), (5, 2))), AlwaysActivation(), CPU)
    weight = members.parameters()[0]

    def loss() -> Tensor:
        return renyi_loss(member_loglik(members, batch), uniform_log_weights(3), 0.8).mean()

    (gradient,) = torch.autograd.grad(loss(), weight)
    direction = torch.randn(weight.shape, generator=torch.Generator().manual_seed(2)).double()
    with torch.no_grad():
        weight.add_(1e-3 * direction)
        above = loss()
        weight.sub_(2e-3 * direction)
        below = loss()

    expected = (above - below) / 2e-3
    torch.testing.assert_close((gradient * direction).sum(), expected.to(gradient), rtol=1e-3, atol=1e-4)


def test_alpha_zero_equals_separate_runs_of_every_member(tmp_path: Path) -> None:
    """The independent deep ensemble is a special case, so it is an honest baseline at the same cost."""
    joint = prepared(tmp_path, num_members=2, renyi_alpha=0.0, max_steps=20)
    alone = [prepared(tmp_path, num_members=1, renyi_alpha=0.8, max_steps=20) for _ in range(2)]
    for training in (joint, *alone):
        training.members.model.double()
    for member, training in enumerate(alone):
        training.members.load_adapter(0, joint.members.adapter_state(member))

    for step in range(20):
        for training in (joint, *alone):
            optimizer_step(training, step)

    for member, training in enumerate(alone):
        torch.testing.assert_close(weights(joint, member), weights(training, 0), atol=1e-9, rtol=0)


def test_permuting_members_permutes_adapters_and_leaves_the_loss(tmp_path: Path) -> None:
    order = [2, 0, 1]
    straight = prepared(tmp_path, num_members=3)
    permuted = prepared(tmp_path, num_members=3)
    for member, source in enumerate(order):
        permuted.members.load_adapter(member, straight.members.adapter_state(source))

    for step in range(4):
        first, second = optimizer_step(straight, step), optimizer_step(permuted, step)

    assert second.loss == pytest.approx(first.loss, rel=1e-5)
    for member, source in enumerate(order):
        torch.testing.assert_close(weights(permuted, member), weights(straight, source), atol=1e-4, rtol=0)


@pytest.mark.parametrize("activation", [{"kind": "always"}, {"kind": "block", "block_size": 8}], ids=str)
def test_accumulating_micro_batches_changes_nothing(tmp_path: Path, activation: dict[str, Any]) -> None:
    whole = prepared(tmp_path, micro_batch_size=6, gradient_accumulation_steps=1, activation=activation)
    parts = prepared(tmp_path, micro_batch_size=2, gradient_accumulation_steps=3, activation=activation)

    for step in range(2):
        first, second = optimizer_step(whole, step), optimizer_step(parts, step)

    assert second.loss == pytest.approx(first.loss, rel=1e-5)
    torch.testing.assert_close(
        torch.tensor(second.gradient_norms), torch.tensor(first.gradient_norms), rtol=1e-3, atol=0
    )


def test_the_same_seed_reproduces_a_run_bit_for_bit(tmp_path: Path) -> None:
    runs = [prepared(tmp_path, seed=3) for _ in range(2)]

    for step in range(4):
        for training in runs:
            optimizer_step(training, step)

    assert torch.equal(weights(runs[0], 1), weights(runs[1], 1))


def test_the_logged_loss_is_the_objective_and_not_its_surrogate(tmp_path: Path) -> None:
    """The surrogate leaves out KL(r||w)/alpha, so it would promise a loss that nobody has."""
    training = prepared(tmp_path, renyi_alpha=0.8, micro_batch_size=12, gradient_accumulation_steps=1)
    for step in range(3):
        optimizer_step(training, step)
    with torch.no_grad():
        loglik = member_loglik(
            training.members, collate(examples_of(training), training.config.activation, CPU)
        )
    expected = renyi_loss(loglik, training.log_weights, 0.8).mean().item()
    mixture = (loglik + training.log_weights[:, None]).logsumexp(0)

    facts = optimizer_step(training, 3)

    assert facts.loss == pytest.approx(expected, rel=1e-6)
    assert facts.mixture_nll == pytest.approx(-mixture.mean().item(), rel=1e-6)
    assert facts.member_nll == pytest.approx(-loglik.mean().item(), rel=1e-6)


def test_training_lowers_the_loss_and_sends_sources_to_different_members(tmp_path: Path) -> None:
    training = prepared(tmp_path, renyi_alpha=1.0, max_steps=60, num_members=2)

    facts = [optimizer_step(training, step) for step in range(60)]

    assert facts[-1].mixture_nll < 0.1 * facts[0].mixture_nll
    assert facts[0].routing_perplexity == pytest.approx(2, abs=1e-6)
    assert facts[-1].routing_perplexity < 1.9


@pytest.mark.parametrize("mean", ["init", "zero"])
def test_prior_is_the_members_weighted_squared_distance_from_its_mean(tmp_path: Path, mean: str) -> None:
    training = prepared(tmp_path, prior_strength=3.0, prior_std=0.5, prior_mean=mean)
    weights = [weight.detach().double() for weight in training.members.parameters()]

    optimizer_step(training, 0)
    assert training.prior is not None
    penalty = training.prior.penalty(training.members, training.log_weights)

    moved = [weight.detach().double() for weight in training.members.parameters()]
    centre = weights if mean == "init" else [0 * weight for weight in weights]
    squares = sum((new - old).square().sum().item() for new, old in zip(moved, centre, strict=True))
    assert penalty.item() == pytest.approx(3 / 12 * squares / 2 / (2 * 0.5**2), rel=1e-5)


def test_strong_prior_keeps_members_where_they_began(tmp_path: Path) -> None:
    distances = {}
    for strength in (0.0, 1e6):
        training = prepared(tmp_path, prior_strength=strength, max_steps=8)
        beginning = [weight.detach().clone() for weight in training.members.parameters()]
        for step in range(8):
            optimizer_step(training, step)
        distances[strength] = training.members.squared_distance(beginning).max().item()

    assert distances[1e6] < distances[0.0] / 2


def test_a_member_split_into_two_halves_leaves_loss_and_gradient(tmp_path: Path) -> None:
    """Two copies with half the weight are the member that they were."""
    members = tiny_members(tmp_path, num_members=3)
    members.model.double()
    batch = collate(random_examples(), AlwaysActivation(), CPU)
    halves = torch.tensor([0.5, 0.25, 0.25], dtype=torch.float64)

    def loss_and_gradient(count: int, weights: Tensor) -> tuple[float, tuple[Tensor, ...]]:
        loss = renyi_loss(member_loglik(members, batch)[:count], weights.log(), 0.8).mean()
        return loss.item(), torch.autograd.grad(loss, members.parameters())

    whole, joined = loss_and_gradient(2, torch.tensor([0.75, 0.25], dtype=torch.float64))
    with torch.no_grad():
        for weight in members.parameters():
            weight[2] = weight[0]
    split, parted = loss_and_gradient(3, halves)

    assert split == pytest.approx(whole, rel=1e-6)
    for one, two in zip(joined, parted, strict=True):
        torch.testing.assert_close(two[0] + two[2], one[0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(two[1], one[1], rtol=1e-4, atol=1e-5)


def test_the_loss_of_fixed_members_falls_as_alpha_rises(tmp_path: Path) -> None:
    """From the mean of the members' NLLs to the mixture's."""
    members = tiny_members(tmp_path)
    with torch.no_grad():
        loglik = member_loglik(members, collate(random_examples(), AlwaysActivation(), CPU))
    log_weights = uniform_log_weights(3)

    losses = torch.stack([renyi_loss(loglik, log_weights, step / 10) for step in range(11)])

    assert (losses[1:] < losses[:-1]).all()
    torch.testing.assert_close(losses[0], -loglik.mean(0))
    torch.testing.assert_close(losses[10], -(loglik + log_weights[:, None]).logsumexp(0))
