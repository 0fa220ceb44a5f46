"""Members to which no example goes can start again beside one that has too much to do."""

from pathlib import Path

import pytest
import torch

from softspec.train.loop.passes import add_gradients
from softspec.train.loop.reseed import reseed, server_of_the_worst
from softspec.train.loop.state import Training
from softspec.train.loop.step import optimizer_step
from tests.support.tiny_training import prepared


@pytest.fixture
def training(tmp_path: Path) -> Training:
    """Three members that differ much; they have optimizer state."""
    training = prepared(
        tmp_path, num_members=3, renyi_alpha=1.0, b_init_std=1.0, learning_rate=1e-6, micro_batch_size=12
    )
    optimizer_step(training, 0)
    return training


def test_a_starved_member_becomes_a_noisy_copy_of_who_serves_the_worst(training: Training) -> None:
    done = add_gradients(training, training.examples, 1.0)
    loglik = done.loglik
    starved = int(loglik.softmax(0).sum(1).argmin())
    donor = int(loglik[:, loglik.logsumexp(0).topk(3, largest=False).indices].softmax(0).sum(1).argmax())

    assert server_of_the_worst(done) == donor
    assert reseed(training.members, training.optimizer, done, starved, seed=1) == donor

    for weight in training.members.parameters():
        gap = (weight[starved] - weight[donor]).norm() / weight[donor].norm()
        assert 0.05 < gap < 0.2
    for kept, taken in zip(*(training.optimizer.moments(each) for each in (donor, starved)), strict=True):
        assert kept.keys() == taken.keys() == {"exp_avg", "exp_avg_sq", "step"}
        assert all(torch.equal(value, taken[name]) for name, value in kept.items())
    after = add_gradients(training, training.examples, 1.0)
    assert after.loglik[starved].sum() > done.loglik[starved].sum() + 10


def test_steps_reseed_only_when_asked_and_tell_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("softspec.train.loop.health.STARVED_SHARE", 3.0)
    runs = {asked: prepared(tmp_path, max_steps=12, reseed_starved=asked) for asked in (False, True)}

    facts = {
        asked: [optimizer_step(training, step) for step in range(10)][-1] for asked, training in runs.items()
    }

    assert facts[False].starved == facts[True].starved == [0, 1]
    assert facts[False].reseeded_from is None
    donors = facts[True].reseeded_from
    assert donors
    assert set(donors) <= {0, 1}
    same = zip(runs[False].members.parameters(), runs[True].members.parameters(), strict=True)
    assert not all(torch.equal(left, right) for left, right in same)
