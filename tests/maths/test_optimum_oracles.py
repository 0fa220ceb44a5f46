"""What the objective converges to, on models whose optimum is known in closed form.

Each test trains with a real optimiser on `renyi_loss` and compares with the formula. Notation: y data, theta members,
V mean Hessian of the NLL, J second moment of the scores; members leave the point solution above alpha_c = 1 / (V^-1 J).
"""

import itertools
import math
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from scipy import optimize, stats
from torch import Tensor
from torch.nn.functional import logsigmoid

from softspec.maths.mixture import uniform_log_weights
from softspec.maths.renyi import dpo_loglik, renyi_loss, responsibilities

PAIR = uniform_log_weights(2)


def minimise(loss: Callable[[Tensor], Tensor], start: list[float] | Tensor) -> tuple[Tensor, float]:
    """L-BFGS in float64 until the gradient vanishes; returns the parameters and the loss."""
    parameters = torch.as_tensor(start, dtype=torch.float64).clone().requires_grad_()
    optimiser = torch.optim.LBFGS(
        [parameters],
        max_iter=2000,
        tolerance_grad=1e-11,
        tolerance_change=1e-16,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimiser.zero_grad()
        value = loss(parameters)
        value.backward()
        return value

    optimiser.step(closure)
    return parameters.detach(), loss(parameters).item()


def curvature(loss: Callable[[Tensor], Tensor]) -> float:
    """Second derivative at spread 0."""
    return torch.autograd.functional.hessian(loss, torch.zeros((), dtype=torch.float64)).item()


def gaussian_loglik(y: Tensor, theta: Tensor, sigma: float = 1.0) -> Tensor:
    """(K, B) from (B,) and (K,)."""
    return -((y - theta[:, None]) ** 2) / (2 * sigma**2) - math.log(sigma * math.sqrt(2 * math.pi))


def standard_normal(num_nodes: int) -> tuple[Tensor, Tensor]:
    """Nodes and log-weights of a quadrature for expectations under N(0, 1)."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(num_nodes)
    return torch.from_numpy(nodes), torch.from_numpy(weights / weights.sum()).log()


class TestCurieWeiss:
    """O1: labels +-mu equally often, two unit-variance Gaussian members; alpha_c = 1 / mu^2 = 0.444."""

    MU = 1.5

    @pytest.mark.parametrize(
        ("alpha", "spread"), [(0.44, 0.0), (0.45, 0.28725), (0.6, 1.17926), (0.8, 1.39908), (1.0, 1.46324)]
    )
    def test_members_settle_on_the_mean_field_magnet(self, alpha: float, spread: float) -> None:
        y = torch.tensor([self.MU, -self.MU], dtype=torch.float64)

        theta, _ = minimise(lambda t: renyi_loss(gaussian_loglik(y, t), PAIR, alpha).mean(), [0.7, -0.2])

        assert sorted(theta.tolist()) == pytest.approx([-spread, spread], abs=2e-4)

    def test_responsibility_of_the_right_member_is_a_sigmoid(self) -> None:
        y, spread = torch.tensor([self.MU], dtype=torch.float64), 1.39908
        members = torch.tensor([spread, -spread], dtype=torch.float64)

        shares = responsibilities(gaussian_loglik(y, members), PAIR, 0.8)

        assert shares[0].item() == pytest.approx(1 / (1 + math.exp(-2 * 0.8 * self.MU * spread)))


class TestGaussianMembers:
    """O2 and O8: y ~ N(0, tau^2), members N(m, s^2) spread like a Gaussian; alpha_c = sigma^2 / tau^2 = 0.346."""

    TAU = 1.7

    def loss(self, mean: Tensor, spread: Tensor, alpha: float) -> Tensor:
        z, log_weights = standard_normal(120)
        y, data_log_weights = standard_normal(16)
        loglik = gaussian_loglik(self.TAU * y, mean + spread * z)
        return (data_log_weights.exp() * renyi_loss(loglik, log_weights, alpha)).sum()

    @pytest.mark.parametrize(
        ("alpha", "variance", "best"),
        [
            (0.3, 0.0, 2.363938533),
            (0.5, 0.89, 2.287047855),
            (0.8, 1.64, 2.067759127),
            (1.0, 1.89, 1.949566784),
        ],
    )
    def test_spread_is_what_the_single_member_leaves_unexplained(
        self, alpha: float, variance: float, best: float
    ) -> None:
        found, loss = minimise(lambda x: self.loss(x[0], x[1], alpha), [0.3, 0.5])

        assert found[0].item() == pytest.approx(0, abs=1e-5)
        assert found[1].item() ** 2 == pytest.approx(variance, abs=1e-4)
        assert loss == pytest.approx(best, abs=1e-7)

    @pytest.mark.parametrize("alpha", [0.1, 0.2, 0.3])
    def test_below_the_critical_alpha_the_spread_is_an_inflated_laplace_approximation(
        self, alpha: float
    ) -> None:
        """With the KL to N(0, 1): variance = 1 / (N (V - alpha J) + 1)."""
        num_examples = 100_000

        def free_energy(x: Tensor) -> Tensor:
            kl = (x.exp() - 1 - x) / 2
            return self.loss(torch.zeros(()), (x / 2).exp(), alpha) + kl / num_examples

        found, _ = minimise(lambda x: num_examples * free_energy(x[0]), [math.log(1e-4)])

        predicted = 1 / (num_examples * (1 - alpha * self.TAU**2) + 1)
        assert found.exp().item() == pytest.approx(predicted, rel=2e-3)


class TestBernoulliBag:
    """O3: T equal labels an example, all 1 or all 0; one logit a member. First-order switch at alpha T = 1."""

    @pytest.mark.parametrize(("alpha", "length"), [(0.5, 1), (0.3, 3), (0.3, 4), (0.8, 2), (0.8, 8)])
    def test_members_specialise_exactly_where_routing_is_cheaper_than_guessing(
        self, alpha: float, length: int
    ) -> None:
        def loss(logits: Tensor) -> Tensor:
            loglik = length * torch.stack([logsigmoid(logits), logsigmoid(-logits)], 1)
            return renyi_loss(loglik, PAIR, alpha).mean()

        best = min(minimise(loss, start)[1] for start in ([0.2, 0.1], [4.0, -4.0]))

        assert best == pytest.approx(min(length, 1 / alpha) * math.log(2), abs=1e-5)


@pytest.mark.parametrize(("length", "correlation", "ratio"), [(5, 0.5, 3.0), (10, 0.2, 2.8)])
def test_labels_that_share_a_cause_lower_the_critical_alpha(
    length: int, correlation: float, ratio: float
) -> None:
    """O4: beta-binomial labels; J / V = 1 + (T - 1) rho, and the curvature in the spread is V - alpha J."""
    shape = (1 / correlation - 1) / 2
    ones = torch.arange(length + 1, dtype=torch.float64)
    probability = torch.from_numpy(stats.betabinom(length, shape, shape).pmf(ones.numpy()))

    def loss(spread: Tensor, alpha: float) -> Tensor:
        logits = torch.stack([spread, -spread])[:, None]
        loglik = ones * logsigmoid(logits) + (length - ones) * logsigmoid(-logits)
        return (probability * renyi_loss(loglik, PAIR, alpha)).sum()

    for alpha in (0.98 / ratio, 1.02 / ratio):
        hessian = length / 4
        assert curvature(partial(loss, alpha=alpha)) == pytest.approx(hessian * (1 - alpha * ratio))


class TestFlexibleCategorical:
    """O5: members that can fit any label law. The negative control for "conflict implies spread"."""

    LAW = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    ENTROPY = 1.029653

    def fit(self, alpha: float) -> tuple[Tensor, float]:
        start = torch.randn(3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

        def loss(logits: Tensor) -> Tensor:
            return (self.LAW * renyi_loss(logits.log_softmax(1), uniform_log_weights(3), alpha)).sum()

        logits, best = minimise(loss, start)
        return logits.softmax(1), best

    @pytest.mark.parametrize("alpha", [0.0, 0.5, 0.8])
    def test_below_one_every_member_is_the_truth(self, alpha: float) -> None:
        members, best = self.fit(alpha)

        torch.testing.assert_close(members, self.LAW.expand(3, 3), rtol=0, atol=1e-4)
        assert best == pytest.approx(self.ENTROPY, abs=1e-6)

    def test_at_one_only_the_mean_is_the_truth(self) -> None:
        members, best = self.fit(1.0)

        torch.testing.assert_close(members.mean(0), self.LAW, rtol=0, atol=1e-4)
        assert (members - self.LAW).abs().max() > 0.05
        assert best == pytest.approx(self.ENTROPY, abs=1e-6)

    def test_above_one_members_are_one_hot(self) -> None:
        """Why orders above 1 are not offered: they reward certainty the data do not have."""
        members, best = self.fit(1.5)

        assert members.amax(1).min() > 0.99
        assert best == pytest.approx(0.732413, abs=1e-4)


@pytest.mark.parametrize(("slope", "sigma"), [(1.0, 1.0), (0.5, 1.3)])
def test_two_opposed_regressions_part_above_their_critical_alpha(slope: float, sigma: float) -> None:
    """O6: y = +-slope x + noise, x ~ N(0, 1); alpha_c = sigma^2 / (3 slope^2 + sigma^2)."""
    critical = sigma**2 / (3 * slope**2 + sigma**2)
    nodes, log_weights = standard_normal(24)
    x, noise = torch.cartesian_prod(nodes, nodes).T
    probability = torch.cartesian_prod(log_weights.exp(), log_weights.exp()).prod(1)

    def loss(spread: Tensor, alpha: float) -> Tensor:
        members = torch.stack([spread, -spread])[:, None]
        y = torch.stack([slope * x + sigma * noise, -slope * x + sigma * noise])
        loglik = -((y[None] - members[..., None] * x) ** 2) / (2 * sigma**2)
        return (probability * renyi_loss(loglik, PAIR, alpha).mean(0)).sum()

    below, above = 0.97 * critical, 1.2 * critical
    assert curvature(lambda s: loss(s, critical)) == pytest.approx(0, abs=1e-9)
    assert minimise(lambda s: loss(s[0], below), [0.3])[0].item() == pytest.approx(0, abs=1e-4)
    assert abs(minimise(lambda s: loss(s[0], above), [0.3])[0].item()) > 0.1


class TestContradictoryPreference:
    """O7: one pair, preferred in both orders half the time each; members at margins m and -m."""

    @staticmethod
    def loss(margins: Tensor, alpha: float) -> Tensor:
        orders = torch.stack([margins, -margins], 1)
        return renyi_loss(dpo_loglik(orders, beta=1.0), PAIR, alpha).mean()

    @pytest.mark.parametrize("margin", [0.0, 0.5, 2.0, 8.0])
    def test_at_one_the_loss_is_flat(self, margin: float) -> None:
        margins = torch.tensor([margin, -margin], dtype=torch.float64)

        assert self.loss(margins, 1.0).item() == pytest.approx(math.log(2))

    def test_below_one_parting_costs(self) -> None:
        margins = torch.tensor([2.0, -2.0], dtype=torch.float64)

        assert self.loss(margins, 0.8).item() == pytest.approx(0.763, abs=5e-4)

    @pytest.mark.parametrize("alpha", [0.0, 0.5, 0.8])
    def test_below_one_members_agree_on_indifference(self, alpha: float) -> None:
        margins, best = minimise(lambda m: self.loss(m, alpha), [3.0, -1.0])

        assert margins.tolist() == pytest.approx([0, 0], abs=1e-4)
        assert best == pytest.approx(math.log(2))


@pytest.mark.parametrize("alpha", [0.3, 0.8, 1.0])
def test_weights_set_to_the_mean_responsibility_reach_the_global_optimum(alpha: float) -> None:
    """O9: with fixed members the loss is convex in the weights."""
    loglik = -4 * torch.rand(3, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    log_weights = uniform_log_weights(3)

    for _ in range(20_000 if alpha < 0.5 else 4000):
        log_weights = responsibilities(loglik, log_weights, alpha).mean(1).log()

    best = optimize.minimize(
        lambda w: renyi_loss(loglik, torch.from_numpy(w).log(), alpha).mean().item(),
        np.full(3, 1 / 3),
        method="SLSQP",
        bounds=[(1e-12, 1)] * 3,
        constraints={"type": "eq", "fun": lambda w: w.sum() - 1},
        options={"ftol": 1e-14},
    )
    assert log_weights.exp().tolist() == pytest.approx(best.x.tolist(), abs=1e-3)
    assert renyi_loss(loglik, log_weights, alpha).mean().item() <= best.fun + 1e-7


@pytest.mark.parametrize("alpha", [0.3, 0.8, 1.0])
def test_fitting_members_to_their_responsibilities_never_raises_the_loss(alpha: float) -> None:
    """The detached-responsibility update is a majorise-minimise step: here each member moves to its weighted mean."""
    y = torch.randn(60, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2
    theta, losses = torch.tensor([0.1, -0.2, 0.5], dtype=torch.float64), []

    for _ in range(50):
        loglik = gaussian_loglik(y, theta)
        losses.append(renyi_loss(loglik, uniform_log_weights(3), alpha).mean().item())
        shares = responsibilities(loglik, uniform_log_weights(3), alpha)
        theta = (shares * y).sum(1) / shares.sum(1)

    assert all(after <= before + 1e-12 for before, after in itertools.pairwise(losses))
    assert losses[-1] < losses[0] - 0.01


def test_small_spreads_change_the_loss_as_the_stability_criterion_says() -> None:
    """F(spread) - F(point) = (eps^2 / 2) tr[(V - alpha J) U], on a misspecified softmax regression."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, 2, generator=generator, dtype=torch.float64)
    labels = torch.randint(3, (200,), generator=generator)
    shift = torch.randn(6, generator=generator, dtype=torch.float64)
    alpha, eps = 0.7, 1e-2

    def loglik(theta: Tensor) -> Tensor:
        return (x @ theta.reshape(2, 3)).log_softmax(1)[torch.arange(200), labels]

    point, base = minimise(lambda t: -loglik(t).mean(), torch.zeros(6))
    scores = torch.autograd.functional.jacobian(loglik, point)
    hessian = torch.autograd.functional.hessian(lambda t: -loglik(t).mean(), point)
    criterion = hessian - alpha * scores.T @ scores / 200

    spread = torch.stack([loglik(point + eps * shift), loglik(point - eps * shift)])
    change = renyi_loss(spread, PAIR, alpha).mean().item() - base

    assert change == pytest.approx((eps**2 / 2 * shift @ criterion @ shift).item(), rel=1e-2)
