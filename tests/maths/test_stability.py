"""Probes of local stability, where the critical alpha is known in closed form (oracles O1 to O6)."""

import math
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor
from torch.nn.functional import logsigmoid

from softspec.errors import ShapeError
from softspec.maths.mixture import uniform_log_weights
from softspec.maths.renyi import renyi_loss
from softspec.maths.stability import (
    CriticalAlpha,
    Estimate,
    Line,
    cross_fitted,
    leading_direction,
    line_probe,
    lowest_curvature,
    spreading_force,
)

Loglik = Callable[[Tensor], Tensor]
"""From parameters (P,) to log-likelihoods of the units (N,)."""


def probe(loglik: Loglik, theta: Tensor, direction: Tensor, step: float = 1e-3) -> Line:
    return line_probe(loglik(theta), loglik(theta + step * direction), loglik(theta - step * direction), step)


def gradient_of(loglik: Loglik, alpha: float) -> Callable[[Tensor], Tensor]:
    """Gradients of the alpha-Renyi loss of two members with weights 1/2."""

    def gradient(pair: Tensor) -> Tensor:
        pair = pair.clone().requires_grad_()
        loss = renyi_loss(torch.stack([loglik(each) for each in pair]), uniform_log_weights(2), alpha).mean()
        return torch.autograd.grad(loss, pair)[0]

    return gradient


def scores_of(loglik: Loglik, theta: Tensor) -> Tensor:
    return torch.autograd.functional.jacobian(loglik, theta)


def doubles(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def curie_weiss(theta: Tensor) -> Tensor:
    """O1: labels +-1.5, a unit-variance Gaussian member; alpha_c = 1 / 2.25."""
    return -((doubles(1.5, -1.5).repeat(50) - theta) ** 2) / 2


def gaussian_location(theta: Tensor) -> Tensor:
    """O2: y ~ N(0, 1.7^2) at quantiles; alpha_c = 1 / 2.89 but for the finite sample's variance."""
    y = torch.from_numpy(1.7 * stats.norm.ppf((np.arange(4000) + 0.5) / 4000))
    return -((y - theta) ** 2) / 2


def bernoulli_bag(theta: Tensor, length: int = 4) -> Tensor:
    """O3: `length` equal labels, all 1 or all 0: J / V = length, alpha_c = 1 / length."""
    ones = doubles(0, 1).repeat(50) * length
    return ones * logsigmoid(theta) + (length - ones) * logsigmoid(-theta)


def overdispersed(theta: Tensor, length: int = 5, correlation: float = 0.5) -> Tensor:
    """O4: beta-binomial counts in exact proportions of 2,000: J / V = 1 + (length - 1) correlation."""
    shape = (1 / correlation - 1) / 2
    counts = np.rint(2_000 * stats.betabinom(length, shape, shape).pmf(np.arange(length + 1))).astype(int)
    ones = torch.repeat_interleave(torch.arange(length + 1), torch.from_numpy(counts)).double()
    return ones * logsigmoid(theta) + (length - ones) * logsigmoid(-theta)


def regressions(theta: Tensor) -> Tensor:
    """O6: y = +-x + noise, x ~ N(0, 1), sigma 1: alpha_c = 1 / 4; by points with the first five moments of N(0, 1)."""
    points = doubles(-(3**0.5), 0, 0, 0, 0, 3**0.5)
    x, noise, sign = torch.cartesian_prod(points, points, doubles(-1, 1)).T
    y = sign * x + noise
    return -((y - theta * x) ** 2) / 2


ORACLES = [
    pytest.param(curie_weiss, 1 / 2.25, 1e-6, id="O1"),
    pytest.param(gaussian_location, 1 / 2.89, 2e-3, id="O2"),
    pytest.param(bernoulli_bag, 1 / 4, 1e-5, id="O3"),
    pytest.param(overdispersed, 1 / 3, 1e-3, id="O4"),
    pytest.param(regressions, 1 / 4, 1e-6, id="O6"),
]


@pytest.mark.parametrize(("loglik", "critical", "tolerance"), ORACLES)
def test_a_line_probe_finds_the_critical_alpha(loglik: Loglik, critical: float, tolerance: float) -> None:
    found = probe(loglik, doubles(0), doubles(1)).critical_alpha()

    assert found.value == pytest.approx(critical, rel=tolerance)
    assert found.low <= found.value + 1e-9
    assert found.value <= found.high + 1e-9


@pytest.mark.parametrize(("loglik", "critical", "tolerance"), ORACLES)
def test_the_force_on_replicas_turns_at_the_critical_alpha(
    loglik: Loglik, critical: float, tolerance: float
) -> None:
    for factor in (1 - 2 * tolerance, 1 + 2 * tolerance):
        force = partial(spreading_force, gradient_of(loglik, factor * critical), doubles(0), step=1e-3)

        assert (force(direction=doubles(1)).item() < 0) == (factor > 1)


def misspecified() -> tuple[Loglik, Tensor]:
    """A softmax regression on labels that it cannot explain, and its optimum."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, 2, generator=generator, dtype=torch.float64)
    labels = torch.randint(3, (200,), generator=generator)

    def loglik(theta: Tensor) -> Tensor:
        return (x @ theta.reshape(2, 3)).log_softmax(1)[torch.arange(200), labels]

    theta = torch.zeros(6, dtype=torch.float64).requires_grad_()
    optimiser = torch.optim.LBFGS([theta], max_iter=200, tolerance_grad=1e-12, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = -loglik(theta).mean()
        loss.backward()
        return loss

    optimiser.step(closure)
    return loglik, theta.detach()


@pytest.mark.parametrize("alpha", [0.0, 0.4, 1.0])
def test_the_force_on_replicas_is_the_hessian_minus_alpha_times_the_scores(alpha: float) -> None:
    loglik, theta = misspecified()
    scores = scores_of(loglik, theta)
    hessian = torch.autograd.functional.hessian(lambda each: -loglik(each).mean(), theta)
    direction = torch.randn(6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    found = spreading_force(gradient_of(loglik, alpha), theta, direction, step=1e-4)

    expected = (hessian - alpha * scores.T @ scores / 200) @ direction
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-7)


def test_lanczos_finds_the_most_unstable_direction() -> None:
    loglik, theta = misspecified()
    scores = scores_of(loglik, theta)
    hessian = torch.autograd.functional.hessian(lambda each: -loglik(each).mean(), theta)
    values, vectors = torch.linalg.eigh(hessian - 0.9 * scores.T @ scores / 200)
    start = torch.randn(6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    value, vector = lowest_curvature(
        partial(spreading_force, gradient_of(loglik, 0.9), theta, step=1e-4), start, iterations=6
    )

    assert value == pytest.approx(values[0].item(), abs=1e-6)
    # Softmax logits have directions that change nothing, which share their eigenvalue.
    assert (vectors[:, values < values[0] + 1e-6].T @ vector).norm().item() == pytest.approx(1, abs=1e-3)


def test_lanczos_needs_no_more_iterations_than_there_are_dimensions() -> None:
    value, vector = lowest_curvature(lambda v: doubles(3, -2) * v, doubles(1, 1), iterations=50)

    assert value == pytest.approx(-2)
    assert vector.abs().tolist() == pytest.approx([0, 1])


def test_flexible_members_are_marginal_at_one_whatever_the_labels_contradict() -> None:
    """O5, the negative control: a law of labels that a member can have exactly gives alpha_c = 1."""
    law = doubles(0.5, 0.3, 0.2)
    labels = torch.repeat_interleave(torch.arange(3), torch.tensor([500, 300, 200]))

    found = probe(lambda theta: theta.log_softmax(0)[labels], law.log(), doubles(1, -0.5, 0.2))

    assert found.critical_alpha().value == pytest.approx(1, rel=1e-5)


def test_rows_of_a_group_pull_together() -> None:
    """One label a row, four rows of a group alike: O3 from its rows."""
    labels = doubles(0, 1).repeat(50).repeat_interleave(4)

    def loglik(theta: Tensor) -> Tensor:
        return logsigmoid((2 * labels - 1) * theta)

    rows = probe(loglik, doubles(0), doubles(1))

    assert rows.critical_alpha().value == pytest.approx(1, rel=1e-5)
    assert rows.of_units(torch.arange(400) // 4).critical_alpha().value == pytest.approx(1 / 4, rel=1e-5)


def logistic(n: int, dimensions: int, seed: int) -> tuple[Tensor, Tensor]:
    """Scores of a well-specified logistic regression at the truth, with its labels and with labels of its own."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, dimensions, generator=generator, dtype=torch.float64)
    truth = torch.randn(dimensions, generator=generator, dtype=torch.float64) / dimensions**0.5
    chance = (x @ truth).sigmoid()
    labels, own = (torch.rand(n, generator=generator) < chance for _ in range(2))
    return (labels.double() - chance)[:, None] * x, (own.double() - chance)[:, None] * x


def test_a_well_specified_model_is_not_called_unstable_by_few_units() -> None:
    """In the same half, 50 dimensions and 100 units give phi above 2: hence the other half."""
    cross, within = [], []
    for seed in range(10):
        scores, own = logistic(200, 50, seed)
        cross.append(cross_fitted(scores, own, seed=seed).phi.value)
        direction = leading_direction(scores, own)
        within.append(Line(scores @ direction, (own @ direction).square()).phi().item())

    assert sum(within) / 10 > 1.8
    assert 0.8 < sum(cross) / 10 < 1.25


@pytest.mark.slow
def test_a_hidden_cause_is_found_among_many_dimensions() -> None:
    """Five labels of a unit share a sign along the first of 20 coordinates: J / V = 5 there, and 1 elsewhere."""
    generator = torch.Generator().manual_seed(3)
    signs = torch.randint(2, (1000, 1), generator=generator).double() * 2 - 1
    rows = torch.randn(1000, 5, 20, generator=generator, dtype=torch.float64)
    own = torch.randn(1000, 5, 20, generator=generator, dtype=torch.float64)
    rows[:, :, 0] = signs

    found = cross_fitted(rows.sum(1), own.sum(1))

    assert 1 / 5 <= found.value < 1.15 / 5, "an upper bound, for the direction is not quite the best"


@pytest.mark.slow
def test_the_interval_of_a_ratio_holds_the_truth_as_often_as_it_says() -> None:
    """100 draws of O4 with 150 units; a share of 0.95 has a standard error of 0.022."""
    held = 0
    shape = (1 / 0.5 - 1) / 2
    for seed in range(100):
        ones = torch.from_numpy(stats.betabinom(5, shape, shape).rvs(150, random_state=seed)).double()

        def loglik(theta: Tensor, ones: Tensor = ones) -> Tensor:
            return ones * logsigmoid(theta) + (5 - ones) * logsigmoid(-theta)

        found = probe(loglik, doubles(0), doubles(1)).critical_alpha(seed)
        held += found.low <= 1 / 3 <= found.high

    assert 0.88 <= held / 100 <= 0.99


def test_where_nothing_pulls_no_alpha_is_critical_and_without_stiffness_any_is() -> None:
    still = Line(torch.zeros(5), torch.ones(5)).critical_alpha()
    slack = Line(torch.ones(5), -torch.ones(5)).critical_alpha()

    assert (still.value, still.low) == (math.inf, math.inf)
    assert (slack.value, slack.high) == (0, 0)
    assert CriticalAlpha(Estimate(2, 1, 4, 9)).high == 1


def test_log_likelihoods_of_other_units_are_refused() -> None:
    with pytest.raises(ShapeError, match=r"\(3,\), \(3,\) and \(2,\)"):
        line_probe(torch.zeros(3), torch.zeros(3), torch.zeros(2), 0.1)
