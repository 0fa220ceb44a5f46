"""Pruning against brute force: every subset of members, with weights from a grid or from scipy."""

from itertools import combinations

import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor

from softspec.train.selection.pruning import pruning_curve, refit
from tests.train.selection.test_units import plain_frame

COUNT = 300


def random_table(num_members: int, seed: int) -> Tensor:
    """Members that know different parts of the units."""
    generator = torch.Generator().manual_seed(seed)
    return -3 * torch.rand(num_members, COUNT, generator=generator, dtype=torch.float64).exp()


def specialists(members: str) -> Tensor:
    """A letter for each member: `a` and `b` know half of the units each, `g` all of them a little."""
    half = torch.arange(COUNT) % 2 == 0
    noise = 0.1 * torch.randn(
        len(members), COUNT, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    knows = {"a": half, "b": ~half}
    rows = [
        torch.full((COUNT,), -2.0) if each == "g" else torch.where(knows[each], -0.5, -6.0)
        for each in members
    ]
    return torch.stack(rows).double() + noise


def best_nll(table: Tensor) -> float:
    """The lowest NLL of a mixture of these members, by scipy over unconstrained logits."""

    def nll(logits: object) -> float:
        weights = torch.log_softmax(torch.as_tensor(logits, dtype=torch.float64), 0)
        return -torch.logsumexp(table + weights[:, None], 0).mean().item()

    return float(minimize(nll, torch.zeros(len(table)).numpy(), method="Nelder-Mead").fun)


@pytest.mark.parametrize("num_members", [2, 3, 4])
@pytest.mark.parametrize("seed", range(3))
def test_the_kept_members_are_the_best_of_all_subsets(num_members: int, seed: int) -> None:
    table, frame = random_table(num_members, seed), plain_frame(COUNT)

    curve = pruning_curve(table, frame, range(1, num_members + 1))

    for pruned in curve:
        size = len(pruned.members)
        by_force = min(
            (best_nll(table[list(subset)]), subset) for subset in combinations(range(num_members), size)
        )
        assert pruned.members == by_force[1]


def test_refitted_weights_are_the_maximum_of_the_likelihood() -> None:
    table = random_table(3, seed=5)

    weights = refit(table, torch.ones(COUNT, dtype=torch.float64))

    refitted = -torch.logsumexp(table + weights.log()[:, None], 0).mean().item()
    assert refitted == pytest.approx(best_nll(table), abs=1e-5)


def test_columns_count_in_the_weights_as_they_weigh() -> None:
    table = random_table(2, seed=1)
    counts = torch.arange(COUNT) % 3 + 1

    weighted = refit(table, counts.double())

    repeated = refit(table.repeat_interleave(counts, 1), torch.ones(int(counts.sum()), dtype=torch.float64))
    assert weighted.tolist() == pytest.approx(repeated.tolist(), abs=1e-4)


def test_two_specialists_are_kept_rather_than_the_best_single_member() -> None:
    """Adding members one by one would begin with the generalist."""
    curve = pruning_curve(specialists("gab"), plain_frame(COUNT), [1, 2])

    assert [pruned.members for pruned in curve] == [(0,), (1, 2)]


def test_copies_are_left_out_and_weights_stay_equal() -> None:
    curve = pruning_curve(specialists("aabb"), plain_frame(COUNT), range(1, 5))

    one, two, *_ = curve
    assert {"aabb"[member] for member in two.members} == {"a", "b"}
    assert two.log_weights.exp().tolist() == pytest.approx([0.5, 0.5])
    assert two.losses.mean() < one.losses.mean() - 1


def test_weights_follow_an_unequal_truth() -> None:
    table = specialists("ab")[:, torch.arange(COUNT) % 10 != 1]
    table = torch.cat([table, table[:, ::2], table[:, ::2]], 1)
    size = table.shape[1]

    (pruned,) = pruning_curve(table, plain_frame(size), [2])

    share = ((table[0] > table[1]).double().mean()).item()
    assert pruned.log_weights.exp().tolist() == pytest.approx([share, 1 - share], abs=0.02)


def test_a_member_without_load_is_dropped() -> None:
    table = torch.cat([specialists("ab"), torch.full((1, COUNT), -50.0, dtype=torch.float64)])

    curve = pruning_curve(table, plain_frame(COUNT), [3])

    assert [pruned.members for pruned in curve] == [(0, 1)]


def test_more_than_eight_members_are_added_one_by_one() -> None:
    table = torch.cat([specialists("ab" * 5), specialists("ab")[:, torch.randperm(COUNT)]])

    curve = pruning_curve(table, plain_frame(COUNT), [1, 2, 3])

    assert [len(pruned.members) for pruned in curve] == [1, 2, 3]
    assert {"ab"[member % 2] for member in curve[1].members} == {"a", "b"}


def test_the_losses_are_those_of_the_kept_mixture() -> None:
    table, frame = random_table(3, seed=2), plain_frame(COUNT)

    for pruned in pruning_curve(table, frame, [1, 2, 3]):
        by_hand = -torch.logsumexp(table[list(pruned.members)] + pruned.log_weights[:, None], 0)
        assert torch.allclose(pruned.losses, by_hand)
