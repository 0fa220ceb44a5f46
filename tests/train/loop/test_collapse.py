"""What the schedule is for: in the first steps all members learn the same, and whichever is ahead must not take all.

The base is random, so the form of an answer is as new as what it says. Rows of a source are routed in groups of 12,
which multiplies every lead by 12.
"""

import math
from pathlib import Path

import pytest
import torch

from softspec.maths.renyi import routing_perplexity
from softspec.train.loop.facts import StepFacts
from softspec.train.loop.passes import add_gradients
from softspec.train.loop.state import Training
from softspec.train.loop.step import optimizer_step
from tests.support.tiny_training import chat_rows, gradients_of, prepared, write_config, write_rows

STEP = {
    "train_file": "grouped.jsonl",
    "micro_batch_size": 24,
    "gradient_accumulation_steps": 1,
    "lr_scheduler_type": "constant",
    "num_members": 4,
    "max_steps": 40,
}


def write_grouped(folder: Path) -> None:
    """A base, and rows with their source as group."""
    write_config(folder)
    write_rows(folder / "grouped.jsonl", [{**row, "group": row["source"]} for row in chat_rows(24)])


def grouped(folder: Path, **settings: object) -> Training:
    """A run on two sources' rows, each a group."""
    write_grouped(folder)
    return prepared(folder, **{"granularity": "group", "group_rows": 12, **STEP, **settings})


def singly(folder: Path, **settings: object) -> Training:
    """A run on the same rows, each routed by itself."""
    write_grouped(folder)
    return prepared(folder, **{**STEP, **settings})


def steps_of(training: Training, number: int | None = None) -> list[StepFacts]:
    """The first steps of a run, or all of them."""
    return [optimizer_step(training, step) for step in range(number or training.total_steps)]


def least_load(steps: list[StepFacts]) -> float:
    """The mean load of the member that has least."""
    return torch.tensor([step.load for step in steps]).mean(0).min().item()


@pytest.mark.slow
def test_nobody_takes_all_while_members_learn_the_form(tmp_path: Path) -> None:
    """The failure first: the plain objective gives one member everything from the third step on."""
    settings = {"reseed_starved": False}
    plain = steps_of(grouped(tmp_path, schedule="plain", **settings), 8)
    auto = steps_of(grouped(tmp_path, **settings), 8)

    assert least_load(plain[3:]) < 0.01
    assert plain[7].routing_perplexity == pytest.approx(1, abs=0.01)
    assert least_load(auto[3:]) > 0.1
    assert auto[7].mixture_nll < plain[7].mixture_nll


@pytest.mark.slow
def test_the_log_tells_how_far_the_schedule_lowered_the_order(tmp_path: Path) -> None:
    """And how many members share a group: at least as many as the schedule wants, but for the last bit."""
    steps = steps_of(grouped(tmp_path, max_steps=10))

    shared_by = [4 - 3 * step.step / 8 for step in steps[:7]]
    assert all(step.routing_perplexity > least - 1e-6 for step, least in zip(steps, shared_by, strict=False))
    assert all(0 < step.renyi_alpha <= 0.8 for step in steps[:7])
    assert min(step.renyi_alpha for step in steps[:7]) < 0.4
    assert [step.renyi_alpha for step in steps[7:]] == [0.8] * 3


@pytest.mark.slow
def test_a_floor_and_a_warm_up_keep_their_meaning_beside_the_schedule(tmp_path: Path) -> None:
    """The warm-up gives the order that is bounded, and the floor comes on top of what is bounded."""
    settings = {"b_init_std": 0.3, "responsibility_floor": 0.5, "alpha_warmup_ratio": 0.5, "max_steps": 4}
    training = grouped(tmp_path, **settings)

    first, *_, last = steps_of(training)

    assert first.renyi_alpha == 0
    assert first.load == [0.25] * 4
    assert last.renyi_alpha == 0.8
    assert min(last.load) >= 0.125

    training.reach_nats = 0.3
    done = add_gradients(training, training.examples, 0.8)
    shares = done.routing.responsibilities(done.loglik)
    bounded = 2 * shares - 0.25
    gap = (bounded * (4 * bounded).log()).sum(0)
    torch.testing.assert_close(gap, torch.full_like(gap, 0.3), rtol=1e-6, atol=0)


@pytest.mark.parametrize("parts", [1, 4])
def test_the_gradient_is_that_of_the_bounded_shares_however_the_step_is_parted(
    tmp_path: Path, parts: int
) -> None:
    settings = {"micro_batch_size": 24 // parts, "gradient_accumulation_steps": parts}
    training = singly(tmp_path, b_init_std=0.3, skip_responsibility=0.0, **settings)
    training.members.model.double()
    training.reach_nats = math.log(4 / 3)
    training.optimizer.zero_grad()
    done = add_gradients(training, training.examples, 0.8)
    found = gradients_of(training.members)

    shares = done.routing.responsibilities(done.loglik)
    batch = training.objective.batch(training.members, training.examples)
    training.optimizer.zero_grad()
    (-4 * (shares * batch.table().loglik).sum(0).mean()).backward()

    assert routing_perplexity(shares).item() == pytest.approx(3, abs=0.2)
    for one, other in zip(found, gradients_of(training.members), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-10)
