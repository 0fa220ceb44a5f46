"""The search on made-up members whose truth is known: who is trained, for how long, and what is chosen."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from softspec.errors import ConfigError, TrainingError
from softspec.train.selection.plan import DEFAULT_ALPHAS, Configuration, Plan, Shape, Wanted, plan_of
from softspec.train.selection.rule import price
from softspec.train.selection.search import Critical, Outcome, Search
from tests.support.tiny_training import config_of_no_files
from tests.train.selection.test_units import plain_frame

UNITS = 200
SHAPE = Shape(16, "all")
PLAN = Plan(DEFAULT_ALPHAS, 4, (1, 2, 3, 4), (SHAPE,), steps=100)
State = str
"""Of members: `alike`, `apart` (every second one follows the same one of two sources), or `lost`."""


def members(state: State, count: int, seed: int, nll: float = 2.0) -> Tensor:
    """Log-likelihoods (K, C) of members in such a state."""
    generator = torch.Generator().manual_seed(seed)
    difficulty = torch.rand(UNITS, generator=torch.Generator().manual_seed(99), dtype=torch.float64)
    noise = 0.02 * torch.randn(count, UNITS, generator=generator, dtype=torch.float64)
    if state == "apart":
        right = torch.arange(UNITS) % 2 == torch.arange(count)[:, None] % 2
        return torch.where(right, -0.5, -6.0) - difficulty + noise
    return -(nll + (3 if state == "lost" else 0)) - difficulty + noise


@dataclass
class Trainer:
    """Trains by asking `state_of` for what members are after some steps; remembers who was trained how far."""

    state_of: Callable[[Configuration, int, bool], State | None]
    frame: Any = field(default_factory=lambda: plain_frame(UNITS))
    steps: dict[Configuration, int] = field(default_factory=dict)
    branched: set[Configuration] = field(default_factory=set)
    verdicts: dict[Configuration, str] = field(default_factory=dict)
    learned: list[str] = field(default_factory=list)
    critical: Critical | None = None

    def measure(self, each: Configuration, step: int) -> Tensor | None:
        state = self.state_of(each, step, each in self.branched)
        self.steps[each] = step
        if state is None:
            return None
        return members(
            state, each.num_members, seed=each.num_members, nll=2.0 + 0.1 * max(0.0, 1 - step / 100)
        )

    def branch(self, each: Configuration, parent: Configuration, step: int) -> None:
        self.branched.add(each)

    def critical_alpha(self, each: Configuration) -> Critical | None:
        return self.critical

    def note(self, each: Configuration, **facts: Any) -> None:
        if "verdict" in facts:
            self.verdicts[each] = facts["verdict"]

    def learn(self, sentence: str) -> None:
        self.learned.append(sentence)

    def forget(self, each: Configuration) -> None:
        pass

    def trained(self) -> dict[float, int]:
        """The steps of the ensembles, by alpha."""
        return {each.renyi_alpha: step for each, step in self.steps.items() if not each.is_single}


def searched(trainer: Trainer, plan: Plan = PLAN) -> Outcome:
    return Search(plan, trainer, trainer).run()


def comes_apart(each: Configuration, step: int, is_branched: bool, late: int = 50) -> State:
    """From alpha 0.5 on; below, members that were given apart stay so."""
    apart = each.num_members > 1 and (is_branched or (each.renyi_alpha >= 0.5 and step >= late))
    return "apart" if apart else "alike"


def never(each: Configuration, step: int, is_branched: bool) -> State:
    return "alike"


def test_specialists_are_found_pruned_and_of_the_smallest_order_that_keeps_them() -> None:
    trainer = Trainer(comes_apart)

    outcome = searched(trainer)

    assert outcome.chosen.configuration.renyi_alpha == 0.5
    assert {member % 2 for member in outcome.chosen.pruned.members} == {0, 1}
    assert outcome.chosen.num_members == 2
    assert outcome.other
    assert outcome.other.num_members == 1


def test_orders_between_cost_half_a_run_and_those_that_would_not_keep_specialists_nothing() -> None:
    """At 0.3 a mixture of which half is right costs log 2 / 0.3 = 2.3 nats; being alike costs 2.0 - 0.5 more."""
    trainer = Trainer(comes_apart)

    searched(trainer)

    assert trainer.branched == {Configuration(4, alpha, SHAPE, 100) for alpha in (0.5, 0.8)}
    assert 0.3 not in trainer.trained()
    assert any(line.startswith("alpha 0.3 was not trained") for line in trainer.learned)


def test_independent_members_are_dropped_once_others_have_come_apart() -> None:
    trainer = Trainer(comes_apart)

    searched(trainer)

    assert trainer.trained()[0.0] == 50
    assert trainer.trained()[1.0] == 100


def test_a_plateau_is_not_given_up_because_others_came_apart_sooner() -> None:
    """Rank 4 comes apart in the last quarter only, rank 16 at once."""
    plan = Plan((0.0, 1.0), 4, (1, 2, 3, 4), (SHAPE, Shape(4, "all")), steps=100)

    def slowly(each: Configuration, step: int, is_branched: bool) -> State:
        return comes_apart(each, step, is_branched, late=25 if each.shape == SHAPE else 100)

    trainer = Trainer(slowly)

    searched(trainer, plan)

    assert trainer.steps[Configuration(4, 1.0, Shape(4, "all"), 100)] == 100
    assert trainer.steps[Configuration(4, 0.0, Shape(4, "all"), 100)] == 25


def test_members_that_stay_alike_come_to_one_adapter() -> None:
    trainer = Trainer(never)

    outcome = searched(trainer)

    assert outcome.chosen.num_members == 1 or outcome.chosen.configuration.renyi_alpha == 0
    assert set(trainer.trained()) <= {0.0, 1.0}
    assert any("still alike" in line for line in trainer.learned)


def test_one_adapter_with_as_many_adapter_steps_may_win_after_all() -> None:
    def needs_steps_only(each: Configuration, step: int, is_branched: bool) -> State:
        return "alike"

    class Longer(Trainer):
        def measure(self, each: Configuration, step: int) -> Tensor | None:
            table = super().measure(each, step)
            if table is None:
                return None
            return table + (3 if each.steps == 400 else 0.5 if each.num_members > 1 else 0)

    trainer = Longer(needs_steps_only)

    outcome = searched(trainer)

    assert outcome.chosen.configuration == Configuration(1, 0.0, SHAPE, 400)
    assert trainer.steps[Configuration(1, 0.0, SHAPE, 400)] == 400


def test_one_adapter_is_not_trained_longer_where_it_is_enough_anyway() -> None:
    class Spoiled(Trainer):
        def measure(self, each: Configuration, step: int) -> Tensor | None:
            table = super().measure(each, step)
            return table if table is None or each.is_single else table - 1

    trainer = Spoiled(never)

    outcome = searched(trainer)

    assert outcome.chosen.configuration == PLAN.single[0]
    assert {each.steps for each in trainer.steps} == {100}


def test_an_order_that_diverges_is_out_and_the_search_goes_on() -> None:
    def diverging(each: Configuration, step: int, is_branched: bool) -> State | None:
        return None if each.renyi_alpha == 1 and step > 25 else never(each, step, is_branched)

    trainer = Trainer(diverging)

    outcome = searched(trainer)

    assert outcome.chosen.configuration.renyi_alpha == 0
    assert "diverged" in trainer.verdicts[Configuration(4, 1.0, SHAPE, 100)]


@pytest.mark.parametrize("fails", ["lost", None], ids=["worse than one adapter", "diverged"])
def test_where_the_largest_order_fails_the_next_one_takes_its_place(fails: State | None) -> None:
    def failing(each: Configuration, step: int, is_branched: bool) -> State | None:
        return fails if each.renyi_alpha == 1 else comes_apart(each, step, is_branched)

    trainer = Trainer(failing)

    outcome = searched(trainer)

    assert trainer.trained()[1.0] == 25
    assert trainer.branched == {Configuration(4, 0.5, SHAPE, 100)}
    assert outcome.chosen.configuration.renyi_alpha == 0.5


def test_where_every_order_fails_each_was_tried_and_independent_members_are_left() -> None:
    def failing(each: Configuration, step: int, is_branched: bool) -> State:
        return "lost" if each.renyi_alpha > 0 else "alike"

    trainer = Trainer(failing)

    outcome = searched(trainer)

    assert trainer.trained() == {0.0: 100, 0.3: 25, 0.5: 25, 0.8: 25, 1.0: 25}
    assert outcome.chosen.num_members == 1 or outcome.chosen.configuration.renyi_alpha == 0


def test_a_selection_in_which_nothing_can_be_trained_says_so() -> None:
    with pytest.raises(TrainingError, match="not even one adapter"):
        searched(Trainer(lambda each, step, is_branched: None))


def test_an_order_does_not_keep_specialists_below_the_price() -> None:
    """Two equal members of four are right: -(1/alpha) log(1/2) on top of 0.5 nats, against 2.0 of members alike."""
    frame = plain_frame(UNITS)
    apart, alike = members("apart", 4, 0), frame.losses(members("alike", 1, 1))

    prices = {alpha: price(apart, alike, alpha, frame) for alpha in (0.3, 0.5, 0.8, 1.0)}

    for alpha, gap in prices.items():
        wrong = torch.tensor(1 + 2.718281828 ** (-alpha * 5.5)).log()
        assert gap.value == pytest.approx(0.5 - 2.0 + (0.6931 - wrong.item()) / alpha, abs=0.02)
    assert [alpha for alpha, gap in prices.items() if gap.is_clear] == [0.3]


# The plan


def test_the_grid_and_the_sizes_come_from_the_configuration() -> None:
    plan = plan_of(config_of_no_files(num_members=3), Wanted(), steps=100)

    assert plan.alphas == DEFAULT_ALPHAS
    assert plan.sizes == (1, 2, 3)
    assert plan.rungs == (25, 50, 75, 100)
    assert plan.most_adapter_steps == 100 * math.ceil(1 + 3 * (2 + (3 + 2) / 2) + 3)


@pytest.mark.parametrize(
    ("critical", "added"),
    [(0.36, {0.36, 0.18}), (0.52, set()), (0.08, {0.08}), (1.4, {0.7}), (math.inf, set()), (0.0, set())],
)
def test_the_critical_alpha_and_half_of_it_join_the_grid_where_it_has_none_near(
    critical: float, added: set[float]
) -> None:
    plan = replace(PLAN, probed=2).with_critical(critical)

    known = set(DEFAULT_ALPHAS)
    assert set(plan.alphas) - known == added
    assert list(plan.alphas) == sorted(plan.alphas)


def test_what_the_probe_adds_is_tried_and_told() -> None:
    trainer = Trainer(comes_apart, critical=Critical(0.65, 0.5, math.inf, 128))

    searched(trainer, replace(PLAN, probed=2))

    assert Configuration(4, 0.65, SHAPE, 100) in trainer.branched
    assert "above alpha 0.65 (95 % from 0.50 to none, 128 units" in trainer.learned[0]
    assert "alpha 0.65 joined the grid" in trainer.learned[0]


def test_orders_that_were_asked_for_are_not_added_to() -> None:
    trainer = Trainer(comes_apart, critical=Critical(0.65, 0.5, 0.9, 128))

    searched(trainer, PLAN)

    assert not any("stability" in line for line in trainer.learned)


def test_nothing_costs_more_than_was_planned() -> None:
    trainer = Trainer(
        lambda each, step, is_branched: "apart" if is_branched or each.renyi_alpha == 1 else "alike"
    )

    searched(trainer)

    begun = {each: 50 if each in trainer.branched else 0 for each in trainer.steps}
    cost = sum(each.num_members * (step - begun[each]) for each, step in trainer.steps.items())
    assert cost <= PLAN.most_adapter_steps


def test_a_budget_makes_runs_shorter_and_is_kept() -> None:
    plan = plan_of(config_of_no_files(num_members=4), Wanted(budget=5000), steps=1000)

    assert 8 <= plan.steps < 1000
    assert plan.most_adapter_steps <= 5000


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (Wanted(budget=20), "0 steps for each configuration are too few"),
        (Wanted(alphas=(1.5,)), "--alphas has 1.5: expected numbers from 0 to 1"),
        (Wanted(members=(0,)), "--members has 0"),
        (Wanted(ranks=(-1,)), "--ranks has -1"),
        (Wanted(layers=("some",)), "--layers has 'some'"),
        (Wanted(final_share=0.0), "--final-share is 0"),
    ],
)
def test_what_cannot_be_tried_is_refused(wanted: Wanted, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plan_of(config_of_no_files(), wanted, steps=100)


def test_the_scaling_of_adapters_stays_where_the_rank_changes() -> None:
    config = config_of_no_files(lora_r=16, lora_alpha=32)

    changed = Configuration(2, 0.5, Shape(4, "top_third"), 10).applied(config)

    assert (changed.lora_r, changed.lora_alpha) == (4, 8)
    assert (changed.layers_to_transform, changed.max_steps, changed.renyi_alpha) == ("top_third", 10, 0.5)
