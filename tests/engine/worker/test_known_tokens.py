"""Groups whose tokens are known: what is handed out, what is told of other tokens, and what is learnt from it."""

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from softspec.artefact.manifest import WeightsRule
from softspec.engine.wire import Adapter, GroupSpec, Seat, num_columns, unpack, unpack_watched
from softspec.engine.worker.mixing import GroupMixer
from softspec.engine.worker.rows import GroupRows
from softspec.maths.answer import TokenUncertainty
from softspec.maths.sampling import SamplingSpec
from tests.support import oracle

VOCAB_SIZE = 40
WEIGHTS = (0.5, 0.3, 0.2)


def spec(num_members: int = 3, weights_rule: WeightsRule = "prefix_posterior", **known: Any) -> GroupSpec:
    adapters = tuple(Adapter(f"{k}", 1 + k, "path") for k in range(num_members))
    weights = [weight / sum(WEIGHTS[:num_members]) for weight in WEIGHTS[:num_members]]
    return GroupSpec(adapters, tuple(map(math.log, weights)), weights_rule, None, 0, **known)


def step(
    mixer: GroupMixer, logits: Tensor, groups: Sequence[tuple[str, GroupSpec]], position: int
) -> dict[str, tuple[TokenUncertainty, dict[int, tuple[float, ...]]]]:
    """One step of groups in consecutive rows, read as the front end reads it."""
    logits, first, rows = logits.clone(), 0, []
    for name, each in groups:
        seat = Seat(name, 0, each, SamplingSpec(temperature=0.0))
        rows.append(GroupRows(seat, tuple(range(first, first + each.num_members)), position))
        first += each.num_members
    sampled = torch.zeros(first, dtype=torch.int64)
    mixer.mix(logits, rows)
    mixer.draw(logits)
    mixer.hand_out(sampled)
    reported = mixer.report(None, num_rows=first)
    assert reported is not None
    found = {}
    for (name, each), group in zip(groups, rows, strict=True):
        leader = group.rows[0]
        read = reported.logprob_token_ids[leader].tolist(), reported.logprobs[leader].tolist()
        token = unpack(*read, each.num_top, each.num_members)
        assert sampled[list(group.rows)].tolist() == [token.token_id] * each.num_members
        found[name] = token, unpack_watched(*read, each, position)
    return found


def logits_of(position: int, rows: int = 3) -> Tensor:
    return 3 * torch.randn(rows, VOCAB_SIZE, generator=torch.Generator().manual_seed(position))


@pytest.mark.parametrize("weights_rule", ["prefix_posterior", "fixed"])
@pytest.mark.parametrize("num_members", [1, 3])
def test_forced_tokens_are_handed_out_with_their_own_numbers(
    num_members: int, weights_rule: WeightsRule
) -> None:
    """Against plain Python: the mixture under the weights that the forced prefix leaves."""
    forced, mixer = (7, 39, 0, 7), GroupMixer()
    group = spec(num_members, weights_rule, forced=forced)
    weights = [math.exp(weight) for weight in group.log_weights]

    for position, token in enumerate(forced):
        logits = logits_of(position, num_members)
        found, _ = step(mixer, logits, [("a", group)], position)["a"]

        members = logits.double().softmax(-1).tolist()
        mixture = oracle.mix(members, weights)
        assert found.token_id == token
        assert found.log_prob == pytest.approx(math.log(mixture[token]), abs=1e-5)
        assert found.total_entropy == pytest.approx(oracle.entropy(mixture), abs=1e-5)
        expected = [math.log(member[token]) for member in members]
        assert found.member_log_probs == pytest.approx(expected, abs=1e-5)
        assert found.member_choices == tuple(member.index(max(member)) for member in members)
        if weights_rule == "prefix_posterior":
            weights = [w * member[token] / mixture[token] for w, member in zip(weights, members, strict=True)]


def test_known_tokens_make_no_step_wait_for_the_device() -> None:
    """On the meta device tensors have no values, so whatever wanted one on the host would raise, and end the group."""
    mixer, group = GroupMixer(), spec(forced=(4, 5), watched=((1, 2), ()))
    for position in range(2):
        seat = Seat("a", 0, group, SamplingSpec(temperature=0.0))
        logits = torch.empty(3, VOCAB_SIZE, device="meta")
        mixer.mix(logits, [GroupRows(seat, (0, 1, 2), position)])
        mixer.draw(logits)
        mixer.hand_out(torch.empty(3, dtype=torch.int64, device="meta"))
        reported = mixer.report(None, num_rows=3)

        assert not mixer._failed
        assert reported is not None
        assert reported.logprobs.shape == (3, 1 + num_columns(3, num_watched=2))


def test_a_group_draws_again_behind_its_last_forced_token() -> None:
    mixer, group = GroupMixer(), spec(forced=(7,))
    step(mixer, logits_of(0), [("a", group)], 0)

    found, _ = step(mixer, logits_of(1), [("a", group)], 1)["a"]

    assert found.token_id != 7
    assert found.log_prob > -1


def test_watched_tokens_are_told_of_at_their_step_alone() -> None:
    """Of different numbers of tokens, in groups of different sizes, beside a group that watches none."""
    mixer = GroupMixer()
    groups = [
        ("plain", spec(3)),
        ("two", spec(2, forced=(1, 2, 3), watched=((5,), (), (9, 0, 39)))),
        ("three", spec(3, forced=(4, 4), watched=((4, 30, 31, 32), ()))),
    ]

    for position in range(3):
        logits = logits_of(position, 8)
        found = step(mixer, logits, groups, position)

        logprobs = logits.log_softmax(-1)
        for name, rows in (("plain", slice(0, 3)), ("two", slice(3, 5)), ("three", slice(5, 8))):
            watched = dict(groups)[name].watched_at(position)
            assert tuple(found[name][1]) == watched
            for token, log_probs in found[name][1].items():
                assert log_probs == pytest.approx(logprobs[rows, token].tolist(), abs=1e-5)


def test_watching_changes_nothing_else() -> None:
    watching = spec(forced=(4, 5), watched=((1, 2), (3,)))

    mixers = GroupMixer(), GroupMixer()
    for position in range(2):
        with_it = step(mixers[0], logits_of(position), [("a", watching)], position)["a"]
        without = step(mixers[1], logits_of(position), [("a", spec(forced=(4, 5)))], position)["a"]
        assert with_it[0] == without[0]


def test_a_token_that_one_member_cannot_give_rules_that_member_out() -> None:
    mixer, group = GroupMixer(), spec(2, forced=(7, 8))
    logits = logits_of(0, 2)
    logits[0, 7] = -math.inf

    first, _ = step(mixer, logits, [("a", group)], 0)["a"]
    second, _ = step(mixer, logits_of(1, 2), [("a", group)], 1)["a"]

    assert first.member_log_probs[0] == -math.inf
    assert first.log_prob == pytest.approx(group.log_weights[1] + first.member_log_probs[1], abs=1e-5)
    assert math.isfinite(first.total_entropy)
    assert second.log_prob == pytest.approx(second.member_log_probs[1], abs=1e-5)


def test_a_token_that_no_member_can_give_is_impossible_and_says_nothing_about_them() -> None:
    mixer, group = GroupMixer(), spec(2, forced=(7, 8))
    logits = logits_of(0, 2)
    logits[:, 7] = -math.inf

    first, _ = step(mixer, logits, [("a", group)], 0)["a"]
    second, _ = step(mixer, logits_of(1, 2), [("a", group)], 1)["a"]

    assert (first.log_prob, *first.member_log_probs) == (-math.inf,) * 3
    joint = [w + m for w, m in zip(group.log_weights, second.member_log_probs, strict=True)]
    assert second.log_prob == pytest.approx(math.log(sum(map(math.exp, joint))), abs=1e-5)


def test_a_group_says_what_it_forces_and_watches_to_the_other_processes() -> None:
    group = spec(forced=(4, 5), watched=((1, 2), ()))

    assert GroupSpec.from_wire(group.to_wire()) == group
    assert group.num_columns == num_columns(3) + 2 * 3
