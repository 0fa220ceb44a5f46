"""The core of the samplers by itself: what it costs the host, and what it leaves out when told to."""

import math

import pytest
import torch
from torch import Tensor

from softspec.engine.wire import Adapter, GroupSpec, Seat
from softspec.maths.sampling import SamplingSpec

pytestmark = pytest.mark.vllm

VOCAB_SIZE = 40
SETTINGS = SamplingSpec(temperature=0.8, top_k=20, top_p=0.95, min_p=0.01, seed=5)


def seat(name: str, num_members: int, sampling: SamplingSpec) -> Seat:
    adapters = tuple(Adapter(f"{name}/{k}", 1 + k, "path") for k in range(num_members))
    prior = (-math.log(num_members),) * num_members
    return Seat(name, 0, GroupSpec(adapters, prior, "prefix_posterior", block_size=None, num_top=2), sampling)


def two_steps(device: str = "cpu", measures_uncertainty: bool = True) -> list[tuple[Tensor, Tensor]]:
    """Tokens and reported log-probabilities of two steps of two groups of 2 and one of 3."""
    from softspec.engine.worker.mixing import GroupMixer, GroupRows

    mixer = GroupMixer()
    mixer.measures_uncertainty = measures_uncertainty
    seats = {
        seat("a", 2, SETTINGS): (0, 1),
        seat("b", 2, SamplingSpec(temperature=0.0)): (4, 3),
        seat("c", 3, SETTINGS): (2, 5, 6),
    }
    steps = []
    for position in range(2):
        generator = torch.Generator().manual_seed(position)
        logits = (3 * torch.randn(7, VOCAB_SIZE, generator=generator)).to(device)
        sampled = torch.zeros(7, dtype=torch.int64, device=device)
        mixer.mix(logits, [GroupRows(leader, rows, position) for leader, rows in seats.items()])
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
        assert logprobs.shape == (7, 3 + 5 + 3)


def test_without_uncertainty_only_its_numbers_are_missing() -> None:
    for (sampled, logprobs), (bare_sampled, bare) in zip(
        two_steps(), two_steps(measures_uncertainty=False), strict=True
    ):
        assert torch.equal(sampled, bare_sampled)
        for leader, num_members in ((0, 2), (4, 2), (2, 3)):
            assert bare[leader, 3:8].isnan().all()
            assert logprobs[leader, 3:8].isfinite().all()
            known = [0, 1, 2, *range(8, 8 + num_members)]
            torch.testing.assert_close(bare[leader, known], logprobs[leader, known])
