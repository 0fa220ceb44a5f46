"""The CPU's loops for mixing against `softspec/maths` in float64, and what they leave to it."""

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from softspec.engine.worker import mixing
from softspec.engine.worker.cpu_mixing import mix_groups
from softspec.maths.uncertainty import predict

FIELDS = ("logprobs", "total_entropy", "aleatoric_entropy", "epistemic", "disagreement", "member_choices")


def logits_of(rows: int, vocab_size: int, spread: float = 3) -> Tensor:
    return 20 + spread * torch.randn(rows, vocab_size, generator=torch.Generator().manual_seed(rows))


def weights_of(groups: int, members: int) -> Tensor:
    return torch.randn(groups, members, generator=torch.Generator().manual_seed(1)).log_softmax(-1)


@pytest.mark.parametrize("vocab_size", [1, 40, 1024, 5000])
@pytest.mark.parametrize("members", [2, 3, 4, 8])
@pytest.mark.parametrize("groups", [1, 5])
def test_groups_are_mixed_as_the_mathematics_says(groups: int, members: int, vocab_size: int) -> None:
    logits, log_weights = logits_of(groups * members + 2, vocab_size), weights_of(groups, members)
    rows = torch.randperm(len(logits), generator=torch.Generator().manual_seed(2))[: groups * members]
    rows = rows.view(groups, members)

    logprobs, log_normalisers, *numbers, is_finite = mix_groups(logits, rows, log_weights)

    expected = logits.double()[rows].log_softmax(-1)
    predictive = predict(expected, log_weights.double())
    assert is_finite.all()
    torch.testing.assert_close(logprobs.double(), expected, atol=4e-6, rtol=1e-6)
    torch.testing.assert_close(log_normalisers.double(), logits.double()[rows].logsumexp(-1))
    for name, number in zip(FIELDS, numbers, strict=True):
        wanted = getattr(predictive, name).to(number.dtype)
        torch.testing.assert_close(number, wanted, atol=4e-6, rtol=1e-6, msg=name)


def test_logits_of_a_wider_matrix_are_mixed_like_others() -> None:
    """As vLLM hands them over where it has padded the vocabulary."""
    logits, rows, log_weights = logits_of(4, 100), torch.tensor([[0, 1], [3, 2]]), weights_of(2, 2)

    found = mix_groups(logits[:, :70], rows, log_weights)

    for number, wanted in zip(found, mix_groups(logits[:, :70].clone(), rows, log_weights), strict=True):
        assert torch.equal(number, wanted)


@pytest.mark.parametrize(
    ("row", "tokens", "value"),
    [
        (4, [7], math.nan),
        (4, [7], math.inf),
        (5, [7], -math.inf),
        (slice(4, 6), [7], -math.inf),
        (slice(4, 6), range(40), -math.inf),
        (slice(4, 6), [7, 8], -90.0),
    ],
    ids=["not a number", "infinite", "forbidden to one", "forbidden to all", "none left", "hardly possible"],
)
def test_extreme_numbers_are_what_the_mathematics_says_and_touch_no_other_group(
    row: int | slice, tokens: Sequence[int], value: float
) -> None:
    logits, log_weights = logits_of(8, 40), weights_of(4, 2)
    rows = torch.arange(8).view(4, 2)
    before = mixing._mix_on_cpu(logits, rows, log_weights, True)
    spoiled = logits.clone()
    spoiled[row, list(tokens)] = value

    found = mixing._mix_on_cpu(spoiled, rows, log_weights, True)

    wanted = mixing._mix_rows(spoiled, rows[2:3], log_weights[2:3], True)
    for number, one, earlier in zip(flat(found), flat(wanted), flat(before), strict=True):
        torch.testing.assert_close(number[2:3], one, atol=4e-6, rtol=1e-6, equal_nan=True)
        for other in (0, 1, 3):
            assert torch.equal(number[other], earlier[other])


def flat(mixed: tuple[Tensor, Tensor, object]) -> list[Tensor]:
    return [*mixed[:2], *vars(mixed[2]).values()]


def test_a_token_that_hardly_any_member_can_give_counts_for_nothing() -> None:
    """One member's probability is no float32; the mixture's is."""
    logits = torch.tensor([[0.0, -300.0, 0.0], [0.0, 0.0, 0.0]])

    logprobs, _, mixture, *_, is_finite = mix_groups(
        logits, torch.tensor([[0, 1]]), weights_of(1, 2) * 0 - math.log(2)
    )

    assert is_finite.all()
    assert logprobs[0, 0].tolist() == pytest.approx([-math.log(2), -300 - math.log(2), -math.log(2)])
    assert mixture[0].exp().tolist() == pytest.approx([5 / 12, 1 / 6, 5 / 12])
