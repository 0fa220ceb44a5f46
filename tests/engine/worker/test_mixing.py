"""The core of the samplers by itself: what it reports, what it costs the host, and what it leaves out when told to."""

import math
from dataclasses import astuple

import pytest
import torch
from torch import Tensor

from softspec.engine.wire import COLUMNS, Adapter, GroupSpec, Seat, num_columns, unpack
from softspec.engine.worker.mixing import GroupMixer
from softspec.engine.worker.rows import GroupRows
from softspec.maths.mixture import update_log_weights
from softspec.maths.sampling import SamplingSpec
from softspec.maths.uncertainty import predict

VOCAB_SIZE = 40
SETTINGS = SamplingSpec(temperature=0.8, top_k=20, top_p=0.95, min_p=0.01, seed=5)
NUM_TOP = 2
ROWS = {"a": (0, 1), "b": (4, 3), "c": (2, 5, 6)}


def seat(name: str, num_members: int, sampling: SamplingSpec) -> Seat:
    adapters = tuple(Adapter(f"{name}/{k}", 1 + k, "path") for k in range(num_members))
    prior = (-math.log(num_members),) * num_members
    spec = GroupSpec(adapters, prior, "prefix_posterior", block_size=None, num_top=NUM_TOP)
    return Seat(name, 0, spec, sampling)


def logits_of(position: int) -> Tensor:
    return 3 * torch.randn(7, VOCAB_SIZE, generator=torch.Generator().manual_seed(position))


def two_steps(device: str = "cpu", measures_uncertainty: bool = True) -> list[tuple[Tensor, Tensor]]:
    """Tokens and reported log-probabilities of two steps of two groups of 2 and one of 3."""
    mixer = GroupMixer()
    mixer.measures_uncertainty = measures_uncertainty
    sampling = {"a": SETTINGS, "b": SamplingSpec(temperature=0.0), "c": SETTINGS}
    seats = {name: seat(name, len(rows), sampling[name]) for name, rows in ROWS.items()}
    steps = []
    for position in range(2):
        logits = logits_of(position).to(device)
        sampled = torch.zeros(7, dtype=torch.int64, device=device)
        mixer.mix(logits, [GroupRows(seats[name], rows, position) for name, rows in ROWS.items()])
        mixer.draw(logits)
        mixer.hand_out(sampled)
        reported = mixer.report(None, num_rows=7)
        assert reported is not None
        steps.append((sampled, reported.logprobs))
    return steps


def test_no_step_waits_for_the_device() -> None:
    """On the meta device tensors have no values, so whatever wanted one on the host would raise."""
    for sampled, logprobs in two_steps(device="meta"):
        assert sampled.shape == (7,)
        assert logprobs.shape == (7, 1 + NUM_TOP + num_columns(3))


@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)
def test_reported_columns_read_back_as_the_numbers_of_the_drawn_token(rows: tuple[int, ...]) -> None:
    log_weights = torch.full((len(rows),), -math.log(len(rows)))
    for position, (sampled, logprobs) in enumerate(two_steps()):
        row, members = logprobs[rows[0]].tolist(), logits_of(position)[list(rows)].log_softmax(-1)

        token_id = int(sampled[rows[0]])
        start = 1 + NUM_TOP
        found = unpack(token_id, row[0], row[start : start + num_columns(len(rows))])

        expected = predict(members, log_weights)
        numbers = [float(getattr(expected, name)) for name in COLUMNS]
        log_prob = float(expected.logprobs[token_id])
        token_logprobs = members[:, token_id].tolist()
        assert astuple(found)[1:-1] == pytest.approx((log_prob, *numbers), abs=1e-5)
        assert found.member_log_probs == pytest.approx(token_logprobs, abs=1e-5)
        log_weights = update_log_weights(log_weights, members[:, token_id])


def test_without_uncertainty_only_its_numbers_are_missing() -> None:
    first, end = 1 + NUM_TOP, 1 + NUM_TOP + len(COLUMNS)
    for (sampled, logprobs), (bare_sampled, bare) in zip(
        two_steps(), two_steps(measures_uncertainty=False), strict=True
    ):
        assert torch.equal(sampled, bare_sampled)
        for leader, num_members in ((0, 2), (4, 2), (2, 3)):
            assert bare[leader, first:end].isnan().all()
            assert logprobs[leader, first:end].isfinite().all()
            known = [*range(first), *range(end, end + num_members)]
            torch.testing.assert_close(bare[leader, known], logprobs[leader, known])
