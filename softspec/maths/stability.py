"""Local stability: at which alpha K equal members part, from log-likelihoods and their gradients at one point.

In: log-likelihoods of units at a point and beside it, gradients, or a function that returns them. Out: the ratio phi
of `J` to `V` along directions, the critical alpha 1 / phi with an interval, and the most unstable direction. Knows no
models.

Members at theta + u_k, with weighted mean u of 0, change the alpha-Renyi loss by 1/2 sum_k w_k u_k' (V - alpha J) u_k:
V is the curvature of the mean NLL, J the second moment of the units' gradients. So one point is stable against
spreading exactly where V - alpha J has no negative eigenvalue, alpha <= 1 / max phi. Source: arXiv:2605.27747 for the
criterion; the expansion, the probes and their estimators are this project's.

A unit is what is routed as one: gradients of the rows of a group are added before they are squared.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from softspec.errors import ShapeError

DRAWS = 1000
"""Bootstrap samples behind an interval."""
LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """A number with its interval (95 %, percentile bootstrap over n units, unless its maker says otherwise)."""

    value: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class CriticalAlpha:
    """The order above which members part along the best direction that was found, 1 / phi, an upper bound.

    `phi` is v'Jv / v'Vv along that direction, on units that the direction was not fitted to: a direction found from few
    gradients, or among few, is not the best there is, so the true phi is rather larger and the critical alpha smaller.
    """

    phi: Estimate

    @property
    def value(self) -> float:
        """1 / phi; 0 where the point is unstable at any order, infinite where nothing pulls."""
        return _inverse(self.phi.value)

    @property
    def low(self) -> float:
        """The lower end of its interval."""
        return _inverse(self.phi.high)

    @property
    def high(self) -> float:
        """The upper end of its interval."""
        return _inverse(self.phi.low)

    @property
    def n(self) -> int:
        """Units that it was measured on."""
        return self.phi.n


@dataclass(frozen=True)
class Line:
    """What N units say along one direction: `scores` are derivatives of log p, `curvatures` minus second ones; (N,).

    Curvatures may also be the variance of the score under the model's own answers, whose mean is Fisher's: that is
    never negative, which V can be away from the optimum.
    """

    scores: Tensor
    curvatures: Tensor

    def of_units(self, unit_of: Tensor) -> "Line":
        """The same of units that have several rows: row n belongs to unit `unit_of[n]`, numbered from 0."""
        count = int(unit_of.max()) + 1
        sums = [row.new_zeros(count).index_add(0, unit_of, row) for row in (self.scores, self.curvatures)]
        return Line(*sums)

    def joined(self, other: "Line") -> "Line":
        """The units of both."""
        return Line(torch.cat([self.scores, other.scores]), torch.cat([self.curvatures, other.curvatures]))

    def phi(self, counts: Tensor | None = None) -> Tensor:
        """v'Jv / v'Vv, (...), from how often each unit counts, (..., N), once by default; infinite unless V > 0."""
        scores, curvatures = self.scores.double(), self.curvatures.double()
        counts = torch.ones_like(scores) if counts is None else counts
        pull, stiffness = counts @ scores.square(), counts @ curvatures
        return torch.where(stiffness > 0, pull / stiffness, math.inf)

    def critical_alpha(self, seed: int = 0) -> CriticalAlpha:
        """1 / phi along this direction, with an interval over the units."""
        return CriticalAlpha(bootstrap(self.phi, len(self.scores), seed))


def line_probe(centre: Tensor, plus: Tensor, minus: Tensor, step: float) -> Line:
    """Scores and curvatures from three log-likelihoods of each unit, (N,): at theta and at theta +- step * v.

    In float64 they are exact up to step^2; where log-likelihoods come from float32 a step should change them by 0.01
    nats or more.
    """
    if not centre.shape == plus.shape == minus.shape:
        raise ShapeError(
            f"log-likelihoods have shapes {tuple(centre.shape)}, {tuple(plus.shape)} and {tuple(minus.shape)}: "
            "expected one and the same (N,)"
        )
    centre, plus, minus = centre.double(), plus.double(), minus.double()
    return Line((plus - minus) / (2 * step), (2 * centre - plus - minus) / step**2)


def bootstrap(statistic: Callable[[Tensor], Tensor], n: int, seed: int = 0) -> Estimate:
    """A statistic of n units with its percentile interval.

    Args:
        statistic: from how often each unit counts, (..., n) float64, to numbers (...).
    """
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(n, (DRAWS, n), generator=generator)
    once = torch.ones(DRAWS, n, dtype=torch.float64)
    counts = torch.zeros_like(once).scatter_add(1, drawn, once)
    value = statistic(torch.ones(n, dtype=torch.float64)).item()
    draws = statistic(counts).sort().values
    tail = round((1 - LEVEL) / 2 * DRAWS)
    return Estimate(value, draws[tail].item(), draws[-1 - tail].item(), n)


def spreading_force(
    gradient: Callable[[Tensor], Tensor], point: Tensor, direction: Tensor, step: float
) -> Tensor:
    """(V - alpha J) v, up to step^2, by two replicas: no Hessian, only the gradients that training computes anyway.

    Args:
        gradient: gradients (2, P) of the alpha-Renyi loss of two members at (2, P), weights 1/2 each, not multiplied by
            the number of members.
        point, direction: (P,).
    """
    plus, minus = gradient(torch.stack([point + step * direction, point - step * direction]))
    return (plus - minus) / step


def lowest_curvature(
    force: Callable[[Tensor], Tensor], start: Tensor, iterations: int = 20
) -> tuple[float, Tensor]:
    """The smallest eigenvalue of a symmetric operator and its unit vector (P,), by Lanczos with full orthogonalisation.

    It is a Rayleigh quotient, so an upper bound: a negative one is proof of instability, a positive one is none of
    stability before as many iterations as there are dimensions.
    """
    basis, diagonal, beside = [start / start.norm()], [], []
    for _ in range(iterations):
        image = force(basis[-1])
        diagonal.append((image @ basis[-1]).item())
        for _ in range(2):
            known = torch.stack(basis)
            image = image - (known @ image) @ known
        norm = image.norm().item()
        if norm <= 1e-10 * max(map(abs, diagonal)) or len(diagonal) == iterations:
            break
        beside.append(norm)
        basis.append(image / norm)
    tridiagonal = torch.diag(torch.tensor(diagonal, dtype=torch.float64))
    size = len(diagonal)
    off = torch.tensor(beside[: size - 1], dtype=torch.float64)
    tridiagonal += torch.diag(off, 1) + torch.diag(off, -1)
    values, vectors = torch.linalg.eigh(tridiagonal)
    vector = vectors[:, 0].to(start) @ torch.stack(basis[:size])
    return values[0].item(), vector / vector.norm()


def leading_direction(scores: Tensor, own_scores: Tensor, ridge: float = 0.1) -> Tensor:
    """The direction of the span of gradients along which J is largest beside Fisher's F, (P,).

    Args:
        scores: gradients of log p of the units' own labels, (m, P); their span is searched.
        own_scores: gradients with labels that the model itself drew, (n, P).
        ridge: what is added to F in every direction, as a part of its mean over the span.
    Returns:
        A direction v with v'(F + ridge)v = 1.
    """
    gram, cross = scores @ scores.T, own_scores @ scores.T
    pull = gram.double() @ gram.double() / len(scores)
    stiffness = cross.double().T @ cross.double() / len(own_scores)
    total = gram.double()
    # Coordinates in which lengths are those of the weights: directions that the span does not have are left out.
    values, vectors = torch.linalg.eigh(total)
    kept = values > 1e-9 * values[-1]
    axes = vectors[:, kept] / values[kept].sqrt()
    pull, stiffness = axes.T @ pull @ axes, axes.T @ stiffness @ axes
    floor = ridge * stiffness.diagonal().mean().clamp_min(1e-30)
    lower = torch.linalg.cholesky(stiffness + floor * torch.eye(len(stiffness), dtype=torch.float64))
    whitened = torch.linalg.solve_triangular(lower, pull, upper=False)
    whitened = torch.linalg.solve_triangular(lower, whitened.T, upper=False)
    _, leading = torch.linalg.eigh((whitened + whitened.T) / 2)
    inner = torch.linalg.solve_triangular(lower.T, leading[:, -1:], upper=True)[:, 0]
    return (axes @ inner).to(scores) @ scores


def cross_fitted(scores: Tensor, own_scores: Tensor, ridge: float = 0.1, seed: int = 0) -> CriticalAlpha:
    """The critical alpha from all gradients of N units: directions from one half, phi from the other, and the reverse.

    Args:
        scores, own_scores: (N, P) each, as for `leading_direction`; unit n of both is the same.
    """
    order = torch.randperm(len(scores), generator=torch.Generator().manual_seed(seed))
    halves = order.chunk(2)
    lines = []
    for fit, judge in (halves, halves[::-1]):
        direction = leading_direction(scores[fit], own_scores[fit], ridge)
        along, own = (each[judge].double() @ direction.double() for each in (scores, own_scores))
        lines.append(Line(along, own.square()))
    return lines[0].joined(lines[1]).critical_alpha(seed)


def _inverse(phi: float) -> float:
    return 1 / phi if phi > 0 else math.inf
