"""The core of the samplers by itself: what it reports, what it costs the host, and what it leaves out when told to."""

import math
from dataclasses import astuple

import pytest
import torch
from torch import Tensor

from softspec.engine.wire import COLUMNS, Adapter, GroupSpec, Seat, num_columns, unpack
from softspec.engine.worker import mixing
from softspec.engine.worker.mixing import GroupMixer
from softspec.engine.worker.rows import GroupRows
from softspec.maths.mixture import update_log_weights
from softspec.maths.sampling import SamplingSpec
from softspec.maths.uncertainty import predict

VOCAB_SIZE = 40
SETTINGS = SamplingSpec(temperature=0.8, top_k=20, top_p=0.95, min_p=0.01, seed=5, logit_bias=((3, 1.5),))
NUM_TOP = 2
ROWS = {"a": (0, 1), "b": (4, 3), "c": (2, 5, 6)}


def seat(name: str, num_members: int, sampling: SamplingSpec) -> Seat:
    adapters = tuple(Adapter(f"{name}/{k}", 1 + k, "path") for k in range(num_members))
    prior = (-math.log(num_members),) * num_members
    spec = GroupSpec(adapters, prior, "prefix_posterior", block_size=None, num_top=NUM_TOP)
    return Seat(name, 0, spec, sampling)


def step(mixer: GroupMixer, logits: Tensor, groups: list[GroupRows]) -> tuple[Tensor, Tensor]:
    """The tokens of all rows, and their log-probability rows."""
    return whole_step(mixer, logits, groups)[:2]


def whole_step(mixer: GroupMixer, logits: Tensor, groups: list[GroupRows]) -> tuple[Tensor, Tensor, Tensor]:
    """The same, and the token ids beside the log-probabilities."""
    logits, sampled = logits.clone(), torch.zeros(len(logits), dtype=torch.int64, device=logits.device)
    mixer.mix(logits, groups)
    mixer.draw(logits)
    mixer.hand_out(sampled)
    reported = mixer.report(None, num_rows=len(logits))
    assert reported is not None
    return sampled, reported.logprobs, reported.logprob_token_ids


def logits_of(position: int) -> Tensor:
    return 3 * torch.randn(7, VOCAB_SIZE, generator=torch.Generator().manual_seed(position))


def two_steps(device: str = "cpu", measures_uncertainty: bool = True) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Tokens, reported log-probabilities and the token ids beside them of two steps of two groups of 2 and one of 3."""
    mixer = GroupMixer()
    mixer.measures_uncertainty = measures_uncertainty
    sampling = {"a": SETTINGS, "b": SamplingSpec(temperature=0.0), "c": SETTINGS}
    seats = {name: seat(name, len(rows), sampling[name]) for name, rows in ROWS.items()}
    return [
        whole_step(
            mixer,
            logits_of(position).to(device),
            [GroupRows(seats[name], rows, position) for name, rows in ROWS.items()],
        )
        for position in range(2)
    ]


def test_no_step_waits_for_the_device() -> None:
    """On the meta device tensors have no values, so whatever wanted one on the host would raise."""
    for sampled, logprobs, _ in two_steps(device="meta"):
        assert sampled.shape == (7,)
        assert logprobs.shape == (7, 1 + NUM_TOP + num_columns(3))


@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)
def test_reported_columns_read_back_as_the_numbers_of_the_drawn_token(rows: tuple[int, ...]) -> None:
    log_weights = torch.full((len(rows),), -math.log(len(rows)))
    for position, (sampled, logprobs, token_ids) in enumerate(two_steps()):
        members = logits_of(position)[list(rows)].log_softmax(-1)

        token_id = int(sampled[rows[0]])
        found = unpack(token_ids[rows[0]].tolist(), logprobs[rows[0]].tolist(), NUM_TOP, len(rows))

        expected = predict(members, log_weights)
        numbers = [float(getattr(expected, name)) for name in COLUMNS]
        log_prob = float(expected.logprobs[token_id])
        token_logprobs = members[:, token_id].tolist()
        assert found.token_id == token_id
        assert astuple(found)[1:6] == pytest.approx((log_prob, *numbers), abs=1e-5)
        assert found.member_log_probs == pytest.approx(token_logprobs, abs=1e-5)
        assert found.member_choices == tuple(members.argmax(-1).tolist())
        log_weights = update_log_weights(log_weights, members[:, token_id])


def test_without_uncertainty_only_its_numbers_are_missing() -> None:
    first, end = 1 + NUM_TOP, 1 + NUM_TOP + len(COLUMNS)
    for (sampled, logprobs, _), (bare_sampled, bare, ids) in zip(
        two_steps(), two_steps(measures_uncertainty=False), strict=True
    ):
        assert torch.equal(sampled, bare_sampled)
        for leader, num_members in ((0, 2), (4, 2), (2, 3)):
            assert bare[leader, first:end].isnan().all()
            assert logprobs[leader, first:end].isfinite().all()
            known = [*range(first), *range(end, end + num_members)]
            torch.testing.assert_close(bare[leader, known], logprobs[leader, known])
            found = unpack(ids[leader].tolist(), bare[leader].tolist(), NUM_TOP, num_members)
            assert found.member_choices == ()


def beside(name: str, spoiled: SamplingSpec = SETTINGS) -> list[GroupRows]:
    """The three groups, of which one has these settings."""
    return [
        GroupRows(seat(each, len(rows), spoiled if each == name else SETTINGS), rows, 0)
        for each, rows in ROWS.items()
    ]


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("spoil", [math.nan, math.inf, -math.inf], ids=str)
def test_a_row_without_finite_numbers_shows_in_its_own_group_alone(name: str, spoil: float) -> None:
    """One number of one member is enough, but for -inf, which forbids a token; a row of it forbids all."""
    logits, groups = logits_of(0), beside("none")
    expected = step(GroupMixer(), logits, groups)
    rows = list(ROWS[name]) if spoil == -math.inf else ROWS[name][1]
    logits[rows, slice(None) if spoil == -math.inf else 8] = spoil

    sampled, logprobs = step(GroupMixer(), logits, groups)

    for each, (leader, *_) in ROWS.items():
        if each != name:
            assert torch.equal(logprobs[leader], expected[1][leader])
        elif spoil == -math.inf:
            assert logprobs[leader, 0] == -math.inf
        else:
            assert logprobs[leader, 0].isnan()
            members = logprobs[leader, 1 + NUM_TOP + len(COLUMNS) :].isnan().tolist()
            assert members[:2] == [False, True]
    others = [row for each, rows in ROWS.items() if each != name for row in rows]
    assert torch.equal(sampled[others], expected[0][others])


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize(
    "spoiled",
    [
        SamplingSpec(logit_bias=((VOCAB_SIZE, 1.0),)),
        SamplingSpec(logit_bias=((-1, 1.0),)),
        SamplingSpec(logit_bias=((2**70, 1.0),)),
        SamplingSpec(temperature=10**400),
    ],
    ids=["beyond the vocabulary", "before it", "beyond int64", "beyond float64"],
)
def test_a_group_that_cannot_be_mixed_leaves_the_others_alone(
    name: str, spoiled: SamplingSpec, caplog: pytest.LogCaptureFixture
) -> None:
    expected = step(GroupMixer(), logits_of(0), beside("none"))

    sampled, logprobs = step(GroupMixer(), logits_of(0), beside(name, spoiled))

    assert len(set(sampled[list(ROWS[name])].tolist())) == 1
    for each, (leader, *_) in ROWS.items():
        assert logprobs[leader, 0].isnan() == (each == name)
        width = 1 + NUM_TOP + num_columns(len(ROWS[each]))
        assert each == name or torch.equal(logprobs[leader, :width], expected[1][leader, :width])
    assert caplog.records[-1].getMessage() == f"could not mix {name}"


@pytest.mark.parametrize("stage", ["draw_tokens", "update_log_weights"])
def test_no_stage_of_a_step_raises(stage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(mixing, stage, fail)

    sampled, logprobs = step(GroupMixer(), logits_of(0), beside("none"))

    for rows in ROWS.values():
        assert logprobs[rows[0], 0].isnan()
        assert len(set(sampled[list(rows)].tolist())) == 1


@pytest.mark.parametrize(
    ("huge", "same"),
    [
        (SamplingSpec(top_k=2**70), SamplingSpec()),
        (SamplingSpec(top_k=-3), SamplingSpec()),
        (SamplingSpec(seed=2**63 + 5), SamplingSpec(seed=5)),
        (SamplingSpec(seed=-1), SamplingSpec(seed=2**63 - 1)),
    ],
    ids=["top_k", "top_k below 0", "seed", "seed below 0"],
)
def test_integers_that_no_tensor_holds_are_brought_into_range(huge: SamplingSpec, same: SamplingSpec) -> None:
    found, expected = (step(GroupMixer(), logits_of(0), beside("a", settings)) for settings in (huge, same))

    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])


def test_the_posterior_is_kept_for_a_few_tokens_back_and_no_more() -> None:
    """A group that goes back two tokens gets the very numbers it had; memory does not grow with the answer."""
    mixer, place = GroupMixer(), seat("a", 2, SETTINGS)

    def at(position: int) -> Tensor:
        return step(mixer, logits_of(position), [GroupRows(place, (0, 1), position)])[1][0]

    before = [at(position) for position in range(200)]
    again = [at(position) for position in range(198, 200)]

    assert all(map(torch.equal, again, before[198:]))
    assert len(mixer._posteriors._histories["a"].weights) < 10
    assert at(100)[0].isnan()


@pytest.mark.parametrize("position", [3, 900])
def test_a_group_at_a_place_where_it_never_was_fails_alone(position: int) -> None:
    groups = beside("none")
    groups[0] = GroupRows(groups[0].seat, groups[0].rows, position)

    _, logprobs = step(GroupMixer(), logits_of(0), groups)

    assert [bool(logprobs[rows[0], 0].isnan()) for rows in ROWS.values()] == [True, False, False]


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_groups_of_any_sizes_get_in_one_step_what_each_gets_alone(temperature: float) -> None:
    """To the last digit, beside a group that is not finite and one with a forbidden token."""
    logits, groups, first = 3 * torch.randn(34, 2000, generator=torch.Generator().manual_seed(0)), [], 0
    for number, size in enumerate((8, 1, 4, 2, 4, 4, 8, 2, 1)):
        place = seat(str(number), size, SamplingSpec(temperature=temperature, seed=number))
        groups.append(GroupRows(place, tuple(range(first, first + size)), 0))
        first += size
    logits[groups[2].rows[1], 5], logits[list(groups[4].rows), 6] = math.nan, -math.inf

    sampled, logprobs = step(GroupMixer(), logits, groups)

    for number, group in enumerate(groups):
        rows, width = list(group.rows), 1 + NUM_TOP + num_columns(len(group.rows))
        alone = step(GroupMixer(), logits[rows], [GroupRows(group.seat, tuple(range(len(rows))), 0)])
        assert logprobs[rows[0], 0].isnan() == (number == 2)
        assert sampled[rows].tolist() == alone[0].tolist()
        assert torch.equal(logprobs[rows[0], :width].nan_to_num(7.0), alone[1][0].nan_to_num(7.0))
