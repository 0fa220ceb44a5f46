"""The mixture and its weights against the definitions; sequences against enumeration of every answer."""

import math

import pytest
import torch
from torch import Tensor

from softspec.errors import ShapeError
from softspec.maths.mixture import (
    distributions,
    mix,
    mixture_logits,
    mixture_logprobs,
    prefix_log_weights,
    sequence_loglik,
    uniform_log_weights,
    update_log_weights,
)
from tests.support import oracle

WEIGHTS = (0.5, 0.3, 0.2)
LOG_WEIGHTS = torch.tensor(WEIGHTS, dtype=torch.float64).log()
MEMBERS = [oracle.TokenTable(vocab_size=3, length=4, seed=seed) for seed in range(3)]


def token_logprobs(tokens: tuple[int, ...]) -> Tensor:
    """(K, T) of one answer under the tabulated members."""
    rows = [[math.log(m.next_token(tokens[:t])[tokens[t]]) for t in range(len(tokens))] for m in MEMBERS]
    return torch.tensor(rows, dtype=torch.float64)


def test_uniform_weights_are_normalised() -> None:
    assert uniform_log_weights(4).exp().tolist() == pytest.approx([0.25] * 4)


def test_mixture_is_the_mean_of_probabilities() -> None:
    members = [m.next_token(()) for m in MEMBERS]

    mixed = mixture_logprobs(torch.tensor(members, dtype=torch.float64).log(), LOG_WEIGHTS)

    assert mixed.exp().tolist() == pytest.approx(oracle.mix(members, WEIGHTS))


def test_each_row_of_a_batch_has_its_own_weights() -> None:
    members = torch.randn(5, 3, 7, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    log_weights = torch.randn(5, 3, generator=torch.Generator().manual_seed(1)).log_softmax(-1)

    batch = mixture_logprobs(members, log_weights)

    rows = [mixture_logprobs(members[row], log_weights[row]) for row in range(5)]
    assert torch.equal(batch, torch.stack(rows))


def test_a_token_impossible_for_every_member_is_impossible() -> None:
    members = torch.tensor([[0.0, -math.inf], [0.0, -math.inf]])

    assert mixture_logprobs(members, uniform_log_weights(2)).tolist() == [0.0, -math.inf]


@pytest.mark.parametrize("spread", [0.1, 3, 50])
def test_distributions_are_those_of_torch(spread: float) -> None:
    logits = 20 + spread * torch.randn(3, 5000, generator=torch.Generator().manual_seed(0))
    logits[1, 7:] = -math.inf

    logprobs, probs, normalisers = distributions(logits.clone())

    torch.testing.assert_close(logprobs, logits.log_softmax(-1), atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(probs, logits.softmax(-1), atol=1e-7, rtol=1e-5)
    torch.testing.assert_close(normalisers, logits.logsumexp(-1), atol=1e-5, rtol=1e-6)


def test_one_member_is_itself_to_the_last_digit() -> None:
    logits = 5 + 3 * torch.randn(4, 1, 5000, generator=torch.Generator().manual_seed(0))

    logprobs, probs, _ = distributions(logits.clone())
    mixture, _ = mix(logprobs, probs, torch.zeros(4, 1))

    assert torch.equal(mixture, logits.squeeze(1).log_softmax(-1))


@pytest.mark.parametrize("num_members", [1, 3])
def test_members_without_a_token_say_so(num_members: int) -> None:
    """And are told from members whose numbers are broken."""
    logits = torch.zeros(2, num_members, 5)
    logits[0] = -math.inf
    logits[1, -1, 2] = math.nan

    _, _, normalisers = distributions(logits)

    assert normalisers[0].tolist() == [-math.inf] * num_members
    assert normalisers[1, -1].isnan()


def test_the_scale_of_the_mixture_is_that_of_its_members() -> None:
    """One probability, three scales: for equal members any weights restore the logits."""
    logits = 20 + torch.randn(7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    logprobs, _, normalisers = distributions(logits.repeat(3, 1))

    scores = mixture_logits(mixture_logprobs(logprobs, LOG_WEIGHTS), LOG_WEIGHTS, normalisers)

    torch.testing.assert_close(scores, logits)


def test_a_repetition_penalty_acts_on_the_mixture_as_on_one_model() -> None:
    """A token of probability 0.999 and logit 20, divided by 1.5, has 0.56 left; as a log, multiplied, it keeps all."""
    rest = 99
    logits = torch.full((2, 1 + rest), 20 - math.log(999 * rest))
    logits[:, 0] = 20
    log_weights = uniform_log_weights(2)
    logprobs, _, normalisers = distributions(logits)

    scores = mixture_logits(mixture_logprobs(logprobs, log_weights), log_weights, normalisers)

    assert scores.softmax(-1)[0] == pytest.approx(0.999, abs=1e-5)
    scores[0] /= 1.5
    assert scores.softmax(-1)[0] == pytest.approx(0.56, abs=0.005)


@pytest.mark.parametrize("spread", [1, 60], ids=["all-in-range", "some-beyond-float32"])
def test_mixing_probabilities_is_exact_wherever_it_is_done(spread: float) -> None:
    """Also tokens whose probability float32 cannot hold keep their log-probabilities: a bias may bring them back."""
    members = (spread * torch.randn(2, 3, 500, generator=torch.Generator().manual_seed(0))).log_softmax(-1)
    log_weights = torch.tensor([WEIGHTS, [0.2, 0.8, 0.0]]).log()

    logprobs, probs = mix(members, members.exp(), log_weights)

    expected = mixture_logprobs(members.double(), log_weights.double())
    torch.testing.assert_close(logprobs.double(), expected, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(probs.double(), expected.exp(), atol=1e-7, rtol=1e-5)


def test_prefix_weights_are_the_posterior_over_members() -> None:
    tokens = (2, 0, 1, 1)

    weights = prefix_log_weights(LOG_WEIGHTS, token_logprobs(tokens)).exp()

    for position in range(len(tokens)):
        shares = [w * m.probability(tokens[:position]) for w, m in zip(WEIGHTS, MEMBERS, strict=True)]
        expected = [share / sum(shares) for share in shares]
        assert weights[:, position].tolist() == pytest.approx(expected, rel=1e-12)


def test_updating_token_by_token_gives_the_prefix_weights() -> None:
    scores = token_logprobs((0, 1, 2, 0))
    log_weights = LOG_WEIGHTS

    for position in range(4):
        torch.testing.assert_close(log_weights, prefix_log_weights(LOG_WEIGHTS, scores)[:, position])
        log_weights = update_log_weights(log_weights, scores[:, position])

    torch.testing.assert_close(log_weights.exp().sum(), torch.tensor(1.0, dtype=torch.float64))


def test_long_answers_do_not_underflow_the_weights() -> None:
    """After 4,000 tokens one member is e^-4000 behind; its weight stays a finite log."""
    scores = torch.full((2, 4000), -1.0)
    scores[1] -= 1

    log_weights = uniform_log_weights(2)
    for position in range(4000):
        log_weights = update_log_weights(log_weights, scores[:, position])

    assert log_weights.tolist() == pytest.approx([0.0, -4000.0])


def test_an_excluded_member_stays_excluded() -> None:
    log_weights = update_log_weights(uniform_log_weights(2), torch.tensor([-1.0, -math.inf]))

    assert update_log_weights(log_weights, torch.tensor([-3.0, -1.0])).exp().tolist() == [1.0, 0.0]


def test_chain_rule_with_prefix_weights_is_the_sequence_mixture() -> None:
    for tokens in MEMBERS[0].answers():
        scores = token_logprobs(tokens)
        weights = prefix_log_weights(LOG_WEIGHTS, scores)

        stepwise = (weights + scores).logsumexp(0).sum()

        whole = sum(w * m.probability(tokens) for w, m in zip(WEIGHTS, MEMBERS, strict=True))
        torch.testing.assert_close(stepwise, sequence_loglik(LOG_WEIGHTS, scores.sum(1)))
        assert stepwise.item() == pytest.approx(math.log(whole), rel=1e-12)


def test_fixed_weights_are_another_model() -> None:
    """Two members that repeat themselves: the sequence mixture knows it, the token mixture does not."""
    scores = torch.tensor([0.9, 0.1], dtype=torch.float64).log()[:, None].expand(2, 10)

    sequence = sequence_loglik(uniform_log_weights(2), scores.sum(1))
    fixed = mixture_logprobs(scores, uniform_log_weights(2)).sum()

    assert sequence.item() == pytest.approx(math.log((0.9**10 + 0.1**10) / 2))
    assert fixed.item() == pytest.approx(10 * math.log(0.5))


def test_mixture_is_never_far_from_its_best_member() -> None:
    """On every example: -log P <= nll_k + log(1 / w_k)."""
    loglik = -30 * torch.rand(3, 100, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    nll = -sequence_loglik(LOG_WEIGHTS, loglik)

    assert bool((nll <= -loglik - LOG_WEIGHTS[:, None] + 1e-12).all())
    assert bool((nll <= -(LOG_WEIGHTS.exp()[:, None] * loglik).sum(0) + 1e-12).all())


def test_missing_weights_are_refused() -> None:
    with pytest.raises(ShapeError, match="found 3 members but 2 log_weights"):
        mixture_logprobs(torch.zeros(3, 5), uniform_log_weights(2))
