"""The one-standard-error rule: the simplest candidate that is not clearly worse than the best."""

import pytest
import torch
from torch import Tensor

from softspec.maths.mixture import uniform_log_weights
from softspec.train.selection.plan import Configuration, Shape
from softspec.train.selection.pruning import Pruned
from softspec.train.selection.rule import Candidate, choose, worse
from tests.train.selection.test_units import plain_frame

UNITS = 100
FRAME = plain_frame(UNITS)


def candidate(alpha: float, kept: int, nll: float, trained: int = 4, seed: int = 0) -> Candidate:
    """A candidate whose losses differ from `nll` by noise of 0.1 with mean 0: differences have errors of 0.014."""
    noise = torch.randn(UNITS, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    noise = (noise - noise.mean()) / noise.std()
    losses = nll + 0.1 * noise
    configuration = Configuration(trained if kept > 1 else 1, alpha, Shape(8, "all"), 100)
    return Candidate(configuration, Pruned(tuple(range(kept)), uniform_log_weights(kept), losses))


@pytest.mark.parametrize(
    ("candidates", "expected"),
    [
        ([(0.0, 1, 2.00), (0.8, 4, 1.995)], (0.0, 1)),
        ([(0.0, 1, 2.10), (0.8, 4, 2.00), (0.8, 2, 2.005)], (0.8, 2)),
        ([(0.0, 1, 2.10), (0.8, 4, 2.00), (0.8, 2, 2.05)], (0.8, 4)),
        ([(0.0, 1, 2.10), (0.5, 3, 2.005), (0.8, 3, 2.00)], (0.5, 3)),
        ([(0.0, 1, 2.10), (0.5, 3, 2.005), (0.8, 2, 2.00)], (0.8, 2)),
        ([(0.0, 1, 2.10), (0.0, 4, 2.005), (0.8, 2, 2.00)], (0.0, 4)),
    ],
    ids=[
        "one adapter if it is near",
        "fewer members",
        "not if they are clearly worse",
        "of equal numbers the smaller alpha",
        "fewer members before a smaller alpha",
        "no order above 0 without evidence for it",
    ],
)
def test_the_simplest_of_the_near_ones_is_chosen(
    candidates: list[tuple[float, int, float]], expected: tuple[float, int]
) -> None:
    given = [candidate(*each, seed=seed) for seed, each in enumerate(candidates)]

    chosen, why = choose(given, FRAME)

    assert (chosen.configuration.renyi_alpha, chosen.num_members) == expected
    assert "standard error" in why


SINGLE, INDEPENDENT, TOP = (
    Configuration(count, alpha, Shape(8, "all"), 100) for count, alpha in ((1, 0), (4, 0), (4, 1))
)
LOW_RANK = Configuration(4, 1.0, Shape(2, "all"), 100)


def losses_of(**nll: float) -> dict[Configuration, Tensor]:
    """Losses with independent noise: differences have a standard error of 0.014."""
    names = {"single": SINGLE, "independent": INDEPENDENT, "top": TOP, "low_rank": LOW_RANK}
    return {
        names[name]: candidate(0.0, 2, value, seed=seed).pruned.losses
        for seed, (name, value) in enumerate(nll.items())
    }


@pytest.mark.parametrize(
    ("losses", "dropped"),
    [
        (losses_of(single=2.2, independent=2.1, top=1.5), {INDEPENDENT}),
        (losses_of(single=2.2, independent=2.1, top=2.15), set()),
        (losses_of(single=2.2, independent=2.1, top=2.6), {TOP}),
        (losses_of(single=2.2, top=2.2, low_rank=1.5), set()),
        (losses_of(single=2.2, top=1.7, low_rank=1.5), {TOP}),
        (losses_of(single=1.0, independent=2.1, top=2.1), set()),
    ],
    ids=[
        "alpha 0 once others have come apart",
        "not what is between one adapter and independent members: it may come apart yet",
        "what is worse than one adapter",
        "not what is as good as one adapter, though another has come apart",
        "what has come apart and is worse than another that has",
        "not ensembles because of one adapter: that is for the end",
    ],
)
def test_what_is_clearly_worse_is_dropped_unless_it_may_come_apart(
    losses: dict[Configuration, Tensor], dropped: set[Configuration]
) -> None:
    assert set(worse(losses, FRAME, frozenset())) == dropped


def test_what_began_with_specialists_has_no_excuse() -> None:
    between = Configuration(4, 0.3, Shape(8, "all"), 100)
    losses = {
        **losses_of(single=2.2, independent=2.1, top=1.5),
        between: candidate(0.3, 4, 2.12, seed=9).pruned.losses,
    }

    assert between not in worse(losses, FRAME, frozenset())
    assert between in worse(losses, FRAME, frozenset({between}))
