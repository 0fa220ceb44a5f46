"""The rules by which configurations are dropped, warm starts allowed, and one of the rest is chosen.

In: losses of the same held-out clusters under each. Out: who stays, and why. Pure functions of numbers.

Source: successive halving (Jamieson and Talwalkar 2016, arXiv:1502.07943), here with paired differences in place of a
fixed share; the one-standard-error rule (Breiman et al. 1984, Classification and Regression Trees).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from softspec.train.selection.plan import Configuration
from softspec.train.selection.pruning import Pruned
from softspec.train.selection.units import Difference, Frame


def worse(
    losses: Mapping[Configuration, Tensor], frame: Frame, branched: frozenset[Configuration]
) -> dict[Configuration, tuple[Configuration, Difference]]:
    """Configurations to drop, each with the best one and by how much it is worse: by more than one standard error.

    One adapter competes with other single ones only, as it is what ensembles are measured by in the end. An ensemble
    whose members may still come apart is not dropped for being behind, because that comes late and at once. Those that
    began with members that had come apart (`branched`) have no such excuse, nor has alpha 0, where it never comes.
    """
    single = {each: loss for each, loss in losses.items() if each.is_single}
    dropped = {}
    for rivals in (single, {each: loss for each, loss in losses.items() if each not in single}):
        for each, loss in rivals.items():
            best = lowest(rivals)
            behind = frame.difference(loss, rivals[best])
            may_come = each.renyi_alpha > 0 and each not in branched and _is_alike(each, losses, frame)
            if behind.is_clear and not may_come:
                dropped[each] = best, behind
    return dropped


def _is_alike(each: Configuration, losses: Mapping[Configuration, Tensor], frame: Frame) -> bool:
    """Whether an ensemble does no better than independent members of its shape, and no worse than one adapter."""
    single = [loss for other, loss in losses.items() if other.is_single and other.shape == each.shape]
    independent = [
        loss
        for other, loss in losses.items()
        if other.shape == each.shape and not other.is_single and other.renyi_alpha == 0
    ]
    gains = [frame.difference(loss, losses[each]) for loss in independent or single]
    harms = [frame.difference(losses[each], loss) for loss in single]
    return not any(gain.is_clear for gain in gains) and not any(
        harm.value > 2 * harm.standard_error for harm in harms
    )


def lowest(losses: Mapping[Configuration, Tensor]) -> Configuration:
    """The configuration with the lowest loss; of equal ones the first."""
    return min(losses, key=lambda each: losses[each].sum().item())


def price(loglik: Tensor, alike: Tensor, renyi_alpha: float, frame: Frame) -> Difference:
    """How much dearer members are at an order, by its own objective, than members that are all alike.

    Members of another order are a valid start only where this is not clearly above zero: otherwise they would stay
    apart, if at all, because they were given so, and training from nothing would not lead there.

    Args:
        loglik: (K, C), under the members. alike: (J,), the losses of one adapter after as many steps, which are those
        of K equal members at any order.
    """
    return frame.difference(frame.losses(loglik, renyi_alpha=renyi_alpha), alike)


@dataclass(frozen=True)
class Candidate:
    """A trained configuration with some of its members."""

    configuration: Configuration
    pruned: Pruned

    @property
    def num_members(self) -> int:
        """How many members are kept."""
        return len(self.pruned.members)


def choose(candidates: Sequence[Candidate], frame: Frame) -> tuple[Candidate, str]:
    """The simplest candidate that is not clearly worse than the best, and why it is the one.

    Within one standard error of the best: one adapter if it is; then the fewest members of alpha 0, if any are; then
    the fewest members, and of equal numbers the smallest alpha.
    """
    best = min(candidates, key=lambda each: each.pruned.losses.sum().item())
    near = [
        each for each in candidates if not frame.difference(each.pruned.losses, best.pruned.losses).is_clear
    ]
    chosen = min(near, key=_complexity)
    if chosen is best:
        return (
            chosen,
            "it has the lowest held-out NLL, and nothing simpler is within one standard error of it",
        )
    gap = frame.difference(chosen.pruned.losses, best.pruned.losses)
    return chosen, (
        f"it is the simplest within one standard error of the best ({described(best)}): {gap.value:+.4f} nats, "
        f"standard error {gap.standard_error:.4f}"
    )


def _complexity(candidate: Candidate) -> tuple[bool, bool, int, float, int]:
    configuration = candidate.configuration
    return (
        candidate.num_members > 1,
        candidate.num_members > 1 and configuration.renyi_alpha > 0,
        candidate.num_members,
        configuration.renyi_alpha,
        configuration.shape.rank,
    )


def described(candidate: Candidate) -> str:
    """A candidate in words."""
    configuration, count = candidate.configuration, candidate.num_members
    if configuration.is_single:
        return f"one adapter, {configuration.steps} steps"
    kept = f"{count} of {configuration.num_members} members"
    return f"alpha {configuration.renyi_alpha:g}, {kept}"
