"""The search: configurations are trained a rung at a time, dropped, joined by others, and one of them is chosen.

In: a `Plan`, and somebody who trains. Out: the chosen candidate, and who else was left. Knows neither models nor files.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from softspec.errors import TrainingError
from softspec.train.selection.plan import Configuration, Plan, Shape
from softspec.train.selection.pruning import Pruned, pruning_curve
from softspec.train.selection.rule import Candidate, choose, described, lowest, price, worse
from softspec.train.selection.units import Difference, Frame

Tables = dict[Configuration, Tensor]
"""Log-likelihoods of the held-out columns under each configuration's members, (K, C)."""


@dataclass(frozen=True)
class Critical:
    """A critical alpha with its 95 % interval, from n units; infinite where nothing pulls members apart."""

    value: float
    low: float
    high: float
    n: int


class Trainer(Protocol):
    """Whoever trains configurations and scores them on the held-out units by which is chosen."""

    frame: Frame

    def measure(self, each: Configuration, step: int) -> Tensor | None:
        """The table after `step` steps; None if training diverged before them."""

    def branch(self, each: Configuration, parent: Configuration, step: int) -> None:
        """Let a configuration begin after `step` steps, with the members of `parent`."""

    def critical_alpha(self, each: Configuration) -> Critical | None:
        """Above which alpha one adapter, trained to its end, would part into several; None if that cannot be told."""


class Notes(Protocol):
    """Whoever keeps what is found out."""

    def note(self, each: Configuration, **facts: Any) -> None:
        """Add facts about a configuration."""

    def learn(self, sentence: str) -> None:
        """Add a sentence about what was learned."""

    def forget(self, each: Configuration) -> None:
        """Free the room of a configuration that goes no further."""


@dataclass(frozen=True)
class Outcome:
    """The chosen candidate, the best one of the other kind, and all that were compared.

    `other` is the best single adapter where an ensemble was chosen, and the best ensemble, if there is one, where a
    single adapter was.
    """

    chosen: Candidate
    other: Candidate | None
    why: str


class Search:
    """One search; `run` is its story."""

    def __init__(self, plan: Plan, trainer: Trainer, notes: Notes) -> None:
        self.plan, self.trainer, self.notes, self.frame = plan, trainer, notes, trainer.frame
        self.begun: set[Configuration] = set()
        self.branched: frozenset[Configuration] = frozenset()

    def run(self) -> Outcome:
        """One adapter first; then climb the rungs, prune what has come up, choose, and let one adapter answer.

        Raises:
            TrainingError: not even one adapter could be trained.
        """
        self._look_at_one_adapter()
        tables = self._climb()
        candidates = self._candidates(tables)
        chosen, why = choose(candidates, self.frame)
        if chosen.num_members > 1:
            matched = self.plan.matched(chosen.configuration.shape)
            candidates += self._candidates(self._measured([matched], matched.steps))
            chosen, why = choose(candidates, self.frame)
        self._say_verdicts(candidates, chosen)
        others = [each for each in candidates if (each.num_members > 1) != (chosen.num_members > 1)]
        other = min(others, key=lambda each: each.pruned.losses.sum().item(), default=None)
        self.notes.learn(f"chosen: {described(chosen)}; {why}")
        return Outcome(chosen, other, why)

    def _look_at_one_adapter(self) -> None:
        """Train one adapter of each shape to its end, and ask the first whether it would rather be several."""
        for each in self.plan.single:
            for step in self.plan.rungs:
                if self.trainer.measure(each, step) is None:
                    break
        if not self.plan.probed or self.plan.num_members == 1:
            return
        critical = self.trainer.critical_alpha(self.plan.single[0])
        if critical is None:
            return
        known = self.plan.alphas
        self.plan = self.plan.with_critical(critical.value)
        added = [f"{alpha:g}" for alpha in self.plan.alphas if alpha not in known]
        self.notes.learn(
            f"stability: {told_critical(critical)}; "
            + (f"alpha {' and '.join(added)} joined the grid" if added else "the grid stays as it is")
        )

    def _climb(self) -> Tables:
        """Train all configurations rung by rung; returns the tables of those that came up to the last one."""
        plan = self.plan
        alive = plan.single + [each for shape in plan.shapes for each in plan.rivals(shape)[0]]
        self.begun = set(alive)
        tables: Tables = {}
        for step in plan.rungs:
            tables = self._measured(alive, step)
            self._note_differences(tables, step)
            if not any(each.is_single for each in tables):
                raise TrainingError(
                    "not even one adapter can be trained: lower learning_rate and start again"
                )
            if step == plan.steps:
                break
            self._drop_worse(tables, step)
            self._let_smaller_orders_follow(tables, step)
            alive = list(tables)
            if step == plan.branch_step:
                alive += [new for shape in plan.shapes for new in self._branches(shape, tables)]
        return tables

    def _drop_worse(self, tables: Tables, step: int) -> None:
        for each, (best, gap) in worse(self._losses(tables), self.frame, self.branched).items():
            self._drop(each, f"dropped after {step} steps: {told(gap)} worse than {best}")
            del tables[each]

    def _let_smaller_orders_follow(self, tables: Tables, step: int) -> None:
        """Where no order above 0 is left before others could begin with its members, the next smaller begins anew.

        The largest order may learn slowest at first, as each of its members sees a part of the data only.
        """
        while step <= self.plan.branch_step and not any(each.renyi_alpha > 0 for each in tables):
            waiting = [
                each for each in self.plan.ensembles if each.renyi_alpha > 0 and each not in self.begun
            ]
            largest = max((each.renyi_alpha for each in waiting), default=None)
            if largest is None:
                return
            following = [each for each in waiting if each.renyi_alpha == largest]
            self.begun |= set(following)
            tables |= self._measured(following, step)
            self._note_differences(tables, step)
            self._drop_worse(tables, step)

    def _branches(self, shape: Shape, tables: Tables) -> Sequence[Configuration]:
        """The orders above 0 that may begin with the members of the largest one that is left."""
        losses = self._losses(tables)
        alive = [each for each in tables if each.shape == shape and not each.is_single]
        parent = max(alive, key=lambda each: each.renyi_alpha, default=None)
        waiting = [each for each in self.plan.ensembles if each.shape == shape and each not in self.begun]
        if parent is None or parent.renyi_alpha == 0 or not waiting:
            return []
        alike = self._one_adapter(shape, losses)
        plain = [alike, *(losses[each] for each in alive if each.renyi_alpha == 0)]
        if not all(self.frame.difference(other, losses[parent]).is_clear for other in plain):
            self.notes.learn(
                f"after {self.plan.branch_step} steps the members of {parent} are still alike, so smaller orders were "
                "not tried: theirs come apart later, if at all"
            )
            return []
        allowed = []
        for each in waiting:
            gap = price(tables[parent], alike, each.renyi_alpha, self.frame)
            if gap.is_clear:
                self.notes.learn(
                    f"alpha {each.renyi_alpha:g} was not trained: by its own objective specialists are {told(gap)} "
                    "dearer than members that are all alike, so it would not keep them"
                )
                continue
            self.trainer.branch(each, parent, self.plan.branch_step)
            allowed.append(each)
        self.branched |= set(allowed)
        return allowed

    def _candidates(self, tables: Tables) -> list[Candidate]:
        """What may be chosen: single adapters, and the ensembles with each number of members that is wanted."""
        losses, found = self._losses(tables), []
        for each, loss in losses.items():
            if each.is_single:
                found.append(Candidate(each, Pruned((0,), torch.zeros(1, dtype=torch.float64), loss)))
                continue
            if each in self.branched:
                gap = price(tables[each], self._one_adapter(each.shape, losses), each.renyi_alpha, self.frame)
                if gap.is_clear:
                    self._drop(
                        each, f"not a candidate: by its own objective {told(gap)} dearer than alike members"
                    )
                    continue
            sizes = [size for size in self.plan.sizes if size > 1]
            curve = pruning_curve(tables[each], self.frame, sizes)
            self.notes.note(
                each,
                pruning=[
                    {
                        "members": list(pruned.members),
                        "weights": pruned.log_weights.exp().tolist(),
                        "nll": self.frame.mean(pruned.losses),
                    }
                    for pruned in curve
                ],
            )
            found += [Candidate(each, pruned) for pruned in curve if len(pruned.members) > 1]
        return found

    def _measured(self, alive: Sequence[Configuration], step: int) -> Tables:
        """The tables of those that could be trained that far."""
        tables: Tables = {}
        for each in alive:
            loglik = self.trainer.measure(each, step)
            if loglik is None:
                self._drop(each, f"dropped: it diverged before step {step}; a lower learning_rate may help")
            else:
                tables[each] = loglik
        return tables

    def _note_differences(self, tables: Tables, step: int) -> None:
        """How far each ensemble is from one adapter of its shape after as many steps."""
        losses = self._losses(tables)
        for each, loss in losses.items():
            if not each.is_single:
                gap = self.frame.difference(loss, self._one_adapter(each.shape, losses))
                self.notes.note(
                    each,
                    versus_one_adapter={
                        "step": step,
                        "value": gap.value,
                        "standard_error": gap.standard_error,
                    },
                )

    def _losses(self, tables: Tables) -> dict[Configuration, Tensor]:
        return {each: self.frame.losses(loglik) for each, loglik in tables.items()}

    def _one_adapter(self, shape: Shape, losses: Mapping[Configuration, Tensor]) -> Tensor:
        """The losses of one adapter of the shape, or of the best one if that was dropped."""
        single = {each: loss for each, loss in losses.items() if each.is_single}
        own = [loss for each, loss in single.items() if each.shape == shape]
        return own[0] if own else single[lowest(single)]

    def _drop(self, each: Configuration, verdict: str) -> None:
        self.notes.note(each, verdict=verdict)
        self.notes.forget(each)

    def _say_verdicts(self, candidates: Sequence[Candidate], chosen: Candidate) -> None:
        best: dict[Configuration, Candidate] = {}
        for each in candidates:
            known = best.setdefault(each.configuration, each)
            if each.pruned.losses.sum() < known.pruned.losses.sum():
                best[each.configuration] = each
        for configuration, each in best.items():
            gap = self.frame.difference(each.pruned.losses, chosen.pruned.losses)
            is_chosen = configuration == chosen.configuration
            self.notes.note(
                configuration, verdict="chosen" if is_chosen else f"{told(gap)} from the chosen one"
            )


def told_critical(critical: Critical) -> str:
    """Where one adapter parts, in words."""
    low, high = (
        f"{bound:.2f}" if math.isfinite(bound) else "none" for bound in (critical.low, critical.high)
    )
    what = f"95 % from {low} to {high}, {critical.n} units; an upper bound"
    if critical.value > 1:
        return (
            f"one adapter is stable at every order, as far as the probe sees (critical alpha above 1, {what})"
        )
    return f"one adapter would part into several above alpha {critical.value:.2f} ({what})"


def told(gap: Difference) -> str:
    """A difference in words."""
    return f"{gap.value:+.4f} nats (standard error {gap.standard_error:.4f})"
