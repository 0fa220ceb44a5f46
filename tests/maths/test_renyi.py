"""The objective and its responsibilities against their definitions and limits."""

import math
from random import Random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from softspec.errors import ConfigError, ShapeError
from softspec.maths.mixture import sequence_loglik, uniform_log_weights
from softspec.maths.renyi import (
    SMALLEST_ALPHA,
    bounded_order,
    dpo_loglik,
    renyi_loss,
    responsibilities,
    surrogate_loss,
)
from tests.support import oracle

ALPHAS = [0.0, 0.1, 0.5, 0.8, 1.0]
UNIFORM = (1 / 3, 1 / 3, 1 / 3)
SKEWED = (0.5, 0.3, 0.2)
GOLDEN = [
    (UNIFORM, 0.0, 2.333333333, (1 / 3, 1 / 3, 1 / 3)),
    (UNIFORM, 0.5, 1.988963367, (0.546549387, 0.331498960, 0.121951652)),
    (UNIFORM, 0.8, 1.833499259, (0.649330867, 0.291763166, 0.058905967)),
    (UNIFORM, 1.0, 1.749600072, (0.705384513, 0.259496460, 0.035119027)),
    (SKEWED, 0.5, 1.638798974, (0.688150515, 0.250430631, 0.061418854)),
    (SKEWED, 1.0, 1.477517796, (0.806033975, 0.177913997, 0.016052027)),
]


def log_weights_of(weights: tuple[float, ...]) -> Tensor:
    return torch.tensor(weights, dtype=torch.float64).log()


def random_loglik(num_members: int = 4, num_examples: int = 5, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return -20 * torch.rand(num_members, num_examples, generator=generator, dtype=torch.float64)


def random_log_weights(num_members: int = 4, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num_members, generator=generator, dtype=torch.float64).log_softmax(0)


@st.composite
def ensembles(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Log-likelihoods (K,) down to -600 nats and weights (K,) that are not too close to 0."""
    num_members = draw(st.integers(1, 6))
    floats = st.floats(-600, 0, allow_subnormal=False)
    loglik = draw(st.lists(floats, min_size=num_members, max_size=num_members))
    raw = draw(st.lists(st.floats(0.05, 1), min_size=num_members, max_size=num_members))
    return torch.tensor(loglik, dtype=torch.float64), (
        torch.tensor(raw, dtype=torch.float64) / sum(raw)
    ).log()


@pytest.mark.parametrize(("weights", "alpha", "loss", "shares"), GOLDEN)
def test_golden_values(
    weights: tuple[float, ...], alpha: float, loss: float, shares: tuple[float, ...]
) -> None:
    loglik = torch.tensor([[-1.0], [-2.0], [-4.0]], dtype=torch.float64)

    found = renyi_loss(loglik, log_weights_of(weights), alpha)
    found_shares = responsibilities(loglik, log_weights_of(weights), alpha)

    assert found.item() == pytest.approx(loss, abs=1e-9)
    assert found_shares[:, 0].tolist() == pytest.approx(shares, abs=2e-9)


@pytest.mark.parametrize("alpha", [*ALPHAS, 1.7])
def test_loss_and_responsibilities_follow_their_definitions(alpha: float) -> None:
    loglik, log_weights = random_loglik(), random_log_weights()

    loss, shares = renyi_loss(loglik, log_weights, alpha), responsibilities(loglik, log_weights, alpha)

    weights = log_weights.exp().tolist()
    for example in range(loglik.shape[1]):
        column = loglik[:, example].tolist()
        assert loss[example].item() == pytest.approx(oracle.renyi_loss(column, weights, alpha), rel=1e-12)
        assert shares[:, example].tolist() == pytest.approx(
            oracle.responsibilities(column, weights, alpha), rel=1e-12
        )


@pytest.mark.parametrize("alpha", ALPHAS)
def test_gradient_is_minus_the_responsibilities(alpha: float) -> None:
    loglik, log_weights = random_loglik().requires_grad_(), random_log_weights()

    renyi_loss(loglik, log_weights, alpha).sum().backward()

    torch.testing.assert_close(loglik.grad, -responsibilities(loglik.detach(), log_weights, alpha))


@pytest.mark.parametrize("alpha", ALPHAS)
def test_surrogate_has_the_gradient_of_the_loss(alpha: float) -> None:
    loglik, log_weights = random_loglik().requires_grad_(), random_log_weights()
    shares = responsibilities(loglik, log_weights, alpha)

    surrogate_loss(loglik, shares).sum().backward()

    torch.testing.assert_close(loglik.grad, -shares.detach())


@pytest.mark.parametrize("alpha", [0.1, 0.5, 0.8, 1.0])
def test_loss_is_the_surrogate_plus_the_price_of_routing(alpha: float) -> None:
    """Which is why the surrogate is not a number to log."""
    loglik, log_weights = random_loglik(), random_log_weights()
    shares = responsibilities(loglik, log_weights, alpha)

    price = (shares * (shares.log() - log_weights[:, None])).sum(0) / alpha

    torch.testing.assert_close(renyi_loss(loglik, log_weights, alpha), surrogate_loss(loglik, shares) + price)


def test_responsibilities_minimise_the_variational_bound() -> None:
    loglik, log_weights = random_loglik(num_examples=1), random_log_weights()
    others = torch.rand(1000, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    others = others / others.sum(1, keepdim=True)

    bounds = (others * (-loglik[:, 0] + (others.log() - log_weights) / 0.8)).sum(1)

    assert bool((bounds >= renyi_loss(loglik, log_weights, 0.8)).all())


def test_hessian_is_minus_alpha_times_the_spread_of_the_responsibilities() -> None:
    """The loss is concave in the log-likelihoods: the force that drives members apart."""
    loglik, log_weights = random_loglik(num_examples=1)[:, 0], random_log_weights()
    r = responsibilities(loglik, log_weights, 0.8)

    hessian = torch.autograd.functional.hessian(lambda a: renyi_loss(a, log_weights, 0.8), loglik)

    torch.testing.assert_close(hessian, -0.8 * (torch.diag(r) - torch.outer(r, r)))


def test_derivative_in_alpha_is_minus_the_information_over_alpha_squared() -> None:
    loglik, log_weights, alpha, step = random_loglik(), random_log_weights(), 0.6, 1e-5
    r = responsibilities(loglik, log_weights, alpha)

    above, below = (renyi_loss(loglik, log_weights, alpha + sign * step) for sign in (1, -1))

    information = (r * (r.log() - log_weights[:, None])).sum(0)
    torch.testing.assert_close((above - below) / (2 * step), -information / alpha**2, rtol=1e-6, atol=1e-8)


def test_gradient_in_learned_weights() -> None:
    loglik, logits = random_loglik(), random_log_weights().requires_grad_()

    renyi_loss(loglik, logits.log_softmax(0), 0.8).sum().backward()

    weights = logits.detach().softmax(0)
    shares = responsibilities(loglik, weights.log(), 0.8)
    torch.testing.assert_close(logits.grad, -(shares - weights[:, None]).sum(1) / 0.8)


@settings(deadline=None, max_examples=150)
@given(ensembles(), st.floats(0, 1), st.floats(0, 1))
def test_loss_never_rises_with_alpha(ensemble: tuple[Tensor, Tensor], first: float, second: float) -> None:
    low, high = sorted((first, second))

    assert renyi_loss(*ensemble, high) <= renyi_loss(*ensemble, low) + 1e-6


@settings(deadline=None, max_examples=150)
@given(ensembles(), st.floats(1e-3, 3))
def test_loss_lies_between_the_best_member_and_the_mean_member(
    ensemble: tuple[Tensor, Tensor], alpha: float
) -> None:
    loglik, log_weights = ensemble

    loss = renyi_loss(loglik, log_weights, alpha)

    assert -loglik.max() - 1e-9 <= loss <= -(log_weights.exp() * loglik).sum() + 1e-9
    assert bool((loss <= -loglik - log_weights / alpha + 1e-9).all())


@settings(deadline=None, max_examples=100)
@given(ensembles(), st.floats(0, 1))
def test_members_far_behind_hardly_hear_an_example(ensemble: tuple[Tensor, Tensor], alpha: float) -> None:
    """Robustness: if k explains it better by D nats, r_j is at most (w_j / w_k) exp(-alpha D)."""
    loglik, log_weights = ensemble
    best = int(loglik.argmax())

    shares = responsibilities(loglik, log_weights, alpha)

    effective = alpha if alpha >= SMALLEST_ALPHA else 0.0
    bound = log_weights - log_weights[best] + effective * (loglik - loglik[best])
    assert bool((shares <= bound.exp() + 1e-12).all())


@settings(deadline=None, max_examples=50)
@given(ensembles(), st.floats(0, 1), st.randoms())
def test_order_of_members_does_not_matter(
    ensemble: tuple[Tensor, Tensor], alpha: float, random: Random
) -> None:
    loglik, log_weights = ensemble
    order = list(range(len(loglik)))
    random.shuffle(order)

    shuffled = renyi_loss(loglik[order], log_weights[order], alpha)

    torch.testing.assert_close(shuffled, renyi_loss(loglik, log_weights, alpha))


@pytest.mark.parametrize("alpha", ALPHAS)
def test_two_copies_with_half_the_weight_are_one_member(alpha: float) -> None:
    loglik, log_weights = random_loglik(), random_log_weights()
    halved = torch.cat([log_weights[:1] - math.log(2), log_weights[:1] - math.log(2), log_weights[1:]])

    split = renyi_loss(torch.cat([loglik[:1], loglik]), halved, alpha)

    torch.testing.assert_close(split, renyi_loss(loglik, log_weights, alpha))


@pytest.mark.parametrize("alpha", ALPHAS)
def test_a_single_member_has_its_own_nll_at_any_alpha(alpha: float) -> None:
    loglik = random_loglik(num_members=1)

    torch.testing.assert_close(renyi_loss(loglik, uniform_log_weights(1), alpha), -loglik[0])


def test_alpha_one_is_the_mixture_nll() -> None:
    loglik, log_weights = random_loglik(), random_log_weights()

    torch.testing.assert_close(renyi_loss(loglik, log_weights, 1.0), -sequence_loglik(log_weights, loglik))


def test_large_alpha_is_the_best_member() -> None:
    loglik = random_loglik()

    loss = renyi_loss(loglik, random_log_weights(), 1e6)

    torch.testing.assert_close(loss, -loglik.amax(0), rtol=0, atol=1e-5)


@pytest.mark.parametrize("alpha", [1e-7, 9.9e-7])
def test_tiny_alpha_is_the_exact_zero_branch(alpha: float) -> None:
    loglik, log_weights = random_loglik(), random_log_weights()

    assert torch.equal(renyi_loss(loglik, log_weights, alpha), renyi_loss(loglik, log_weights, 0.0))


def test_expansion_around_alpha_zero() -> None:
    """mean NLL - (alpha / 2) variance, up to alpha squared."""
    loglik, log_weights, alpha = random_loglik(), random_log_weights(), 1e-5
    weights = log_weights.exp()[:, None]
    mean = (weights * loglik).sum(0)
    variance = (weights * (loglik - mean).square()).sum(0)

    torch.testing.assert_close(
        renyi_loss(loglik, log_weights, alpha), -mean - alpha / 2 * variance, rtol=0, atol=1e-6
    )


@pytest.mark.parametrize("alpha", [1e-6, 1e-4, 1e-2, 1.0])
def test_float32_input_of_hundreds_of_nats_keeps_its_digits(alpha: float) -> None:
    """A float32 logsumexp divided by alpha is off by 0.1 nats at 1e-6, and naive powers overflow at 1."""
    generator = torch.Generator().manual_seed(0)
    loglik = -50 - 498 * torch.rand(8, 64, generator=generator)
    log_weights = uniform_log_weights(8)

    loss = renyi_loss(loglik, log_weights, alpha)

    weights = [1 / 8] * 8
    truth = [oracle.renyi_loss(column, weights, alpha) for column in loglik.double().T.tolist()]
    assert loss.dtype == torch.float64
    assert loss.tolist() == pytest.approx(truth, abs=1e-7)


def test_float32_alone_would_not_keep_them() -> None:
    """Guards the reason for float64: if this fails, the conversion may go."""
    loglik = -50 - 498 * torch.rand(8, 64, generator=torch.Generator().manual_seed(0))

    naive = -(1e-6 * loglik - math.log(8)).logsumexp(0) / 1e-6

    error = (naive - renyi_loss(loglik, uniform_log_weights(8), 1e-6)).abs().max()
    assert error > 0.05


def test_price_of_specialisation() -> None:
    """One perfect member among hopeless ones: 2.6 nats per example at alpha = 0.8 and K = 8, however long."""
    loglik = torch.full((8, 1), -1e4, dtype=torch.float64)
    loglik[0] = 0

    assert renyi_loss(loglik, uniform_log_weights(8), 0.8).item() == pytest.approx(math.log(8) / 0.8)


@pytest.mark.parametrize(
    ("gap", "length", "alpha", "share"),
    [(0.005, 8, 0.8, 0.508), (0.005, 1024, 0.8, 0.984), (0.02, 64, 0.8, 0.736), (0.02, 256, 0.1, 0.625)],
)
def test_long_answers_saturate_the_routing(gap: float, length: int, alpha: float, share: float) -> None:
    loglik = torch.tensor([0.0, -gap * length])

    assert responsibilities(loglik, uniform_log_weights(2), alpha)[0].item() == pytest.approx(share, abs=5e-4)


@pytest.mark.parametrize("alpha", [-0.1, math.inf, math.nan])
def test_impossible_alpha_is_refused(alpha: float) -> None:
    with pytest.raises(ConfigError, match="renyi_alpha is"):
        renyi_loss(random_loglik(), random_log_weights(), alpha)


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ShapeError, match=r"loglik has shape \(3, 5\) and log_weights \(4,\)"):
        renyi_loss(random_loglik(num_members=3), random_log_weights(), 0.5)


@pytest.mark.parametrize("weight", [0.5, 0.2])
@pytest.mark.parametrize("reach_nats", [0.0, 0.1, 0.4, 2.0])
@pytest.mark.parametrize("gap", [0.3, 3.0, 30.0])
def test_bounded_shares_are_the_best_within_reach(gap: float, reach_nats: float, weight: float) -> None:
    """Against all shares of two members in steps of 1e-5: the least expected NLL with the price of routing in it."""
    loglik = torch.tensor([[-1.0 - gap], [-1.0]], dtype=torch.float64)
    log_weights = log_weights_of((weight, 1 - weight))
    first = torch.linspace(0, 1, 100_001, dtype=torch.float64)
    shares = torch.stack([first, 1 - first])
    prices = (torch.special.xlogy(shares, shares) - shares * log_weights[:, None]).sum(0)
    objective = (shares * -loglik).sum(0) + prices / 0.8
    best = objective.where(prices <= reach_nats + 1e-9, math.inf).argmin()

    order = bounded_order(loglik, log_weights, 0.8, reach_nats)

    assert 0 < order.item() <= 0.8
    assert responsibilities(loglik, log_weights, order)[0].item() == pytest.approx(
        first[best].item(), abs=2e-5
    )


def test_a_reach_of_all_that_weights_allow_leaves_the_order() -> None:
    loglik = 1000 * random_loglik(num_members=4)

    order = bounded_order(loglik, uniform_log_weights(4), 0.8, math.log(4) + 1e-12)

    assert order.tolist() == [0.8] * loglik.shape[1]


def test_every_example_is_bounded_by_itself() -> None:
    """So that parts of a step may be routed apart; and each from an order of its own."""
    loglik, log_weights = random_loglik() * torch.tensor([0.01, 1, 10, 100, 0]), random_log_weights()
    orders = torch.tensor([0.1, 0.3, 0.5, 0.8, 1], dtype=torch.float64)

    together = bounded_order(loglik, log_weights, orders, 0.2)

    alone = [bounded_order(loglik[:, [n]], log_weights, orders[n].item(), 0.2).item() for n in range(5)]
    assert together.tolist() == alone
    assert (together < orders).tolist() == [False, True, True, True, False]


DPO_GOLDEN = [
    (0.1, (5.0, -5.0), 0.0, 0.724076984),
    (0.1, (5.0, -5.0), 0.8, 0.699241894),
    (0.1, (5.0, -5.0), 1.0, 0.693147181),
    (1.0, (2.0, -1.0), 0.0, 0.720094849),
    (1.0, (2.0, -1.0), 0.8, 0.584341099),
    (1.0, (2.0, -1.0), 1.0, 0.553612656),
]


@pytest.mark.parametrize(("beta", "margins", "alpha", "loss"), DPO_GOLDEN)
def test_golden_preference_losses(
    beta: float, margins: tuple[float, float], alpha: float, loss: float
) -> None:
    loglik = dpo_loglik(torch.tensor(margins, dtype=torch.float64), beta)

    assert renyi_loss(loglik, uniform_log_weights(2), alpha).item() == pytest.approx(loss, abs=1e-9)


def test_golden_preference_responsibilities_and_gradient() -> None:
    margins = torch.tensor([5.0, -5.0], dtype=torch.float64, requires_grad=True)
    log_weights = uniform_log_weights(2)
    loglik = dpo_loglik(margins, 0.1)

    renyi_loss(loglik, log_weights, 0.8).backward()

    assert responsibilities(loglik.detach(), log_weights, 0.8).tolist() == pytest.approx(
        [0.598687660, 0.401312340], abs=1e-9
    )
    assert margins.grad is not None
    assert margins.grad.tolist() == pytest.approx([-0.022602894, -0.024980061], abs=1e-9)


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_preference_loss_starts_at_log_two(alpha: float, smoothing: float) -> None:
    loglik = dpo_loglik(torch.zeros(4, 3), 0.1, smoothing)

    torch.testing.assert_close(
        renyi_loss(loglik, uniform_log_weights(4), alpha),
        torch.full((3,), math.log(2)).double(),
        rtol=1e-6,
        atol=0,
    )


def test_label_smoothing_mixes_the_two_orders() -> None:
    margin = torch.tensor([2.0], dtype=torch.float64)
    right = 1 / (1 + math.exp(-0.6))

    loglik = dpo_loglik(margin, 0.3, label_smoothing=0.1)

    assert loglik.item() == pytest.approx(math.log(0.9 * right + 0.1 * (1 - right)))
