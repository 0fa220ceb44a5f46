"""Uncertainty of one prediction and of sequences: closed forms, bounds, and enumeration of every answer."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from softspec.errors import ShapeError
from softspec.maths.divergence import functional_diversity, jensen_shannon_matrix
from softspec.maths.mixture import (
    mixture_logprobs,
    prefix_log_weights,
    sequence_loglik,
    uniform_log_weights,
)
from softspec.maths.uncertainty import (
    aleatoric_entropy,
    entropy,
    kl_divergence,
    mutual_information,
    posterior_information,
    predict,
    total_entropy,
    unmeasured,
)
from tests.support import oracle

WEIGHTS = (0.5, 0.3, 0.2)
LOG_WEIGHTS = torch.tensor(WEIGHTS, dtype=torch.float64).log()
OPPOSED = torch.tensor([[0.9, 0.1], [0.1, 0.9]], dtype=torch.float64).log()
HALVES = uniform_log_weights(2)


@st.composite
def predictions(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Members' log-probabilities (K, V), from flat to nearly one-hot, and log-weights (K,)."""
    num_members, vocab_size = draw(st.integers(1, 6)), draw(st.integers(2, 12))
    sharpness, seed = draw(st.floats(0.01, 20)), draw(st.integers(0, 2**31))
    generator = torch.Generator().manual_seed(seed)
    logits = sharpness * torch.randn(num_members, vocab_size, generator=generator, dtype=torch.float64)
    weights = torch.randn(num_members, generator=generator, dtype=torch.float64)
    return logits.log_softmax(-1), weights.log_softmax(0)


def test_two_opposed_coins() -> None:
    """Oracle U1."""
    assert mutual_information(OPPOSED, HALVES).item() == pytest.approx(0.368064207, abs=1e-9)


@pytest.mark.parametrize(
    ("length", "mutual"), [(1, 0.368064), (2, 0.514375), (3, 0.597782), (5, 0.663279), (10, 0.691281)]
)
def test_repeated_coins_saturate_mutual_information(length: int, mutual: float) -> None:
    """Oracle U2: every answer of two i.i.d. token models, and the fixed-weight sum, which must differ."""
    heads = torch.tensor(list(itertools.product((0, 1), repeat=length)))
    answers = OPPOSED[:, heads].sum(-1)

    fixed_weight_sum = length * predict(OPPOSED, HALVES).epistemic

    assert mutual_information(answers, HALVES).item() == pytest.approx(mutual, abs=1e-6)
    assert fixed_weight_sum.item() == pytest.approx(0.368064207 * length, abs=1e-6)


MEMBERS = [oracle.TokenTable(vocab_size=3, length=4, seed=seed) for seed in range(3)]
ANSWERS = list(MEMBERS[0].answers())


def answer_tables(tokens: tuple[int, ...]) -> Tensor:
    """(K, T, V): every member's next-token log-probabilities along one answer."""
    rows = [[member.next_token(tokens[:t]) for t in range(len(tokens))] for member in MEMBERS]
    return torch.tensor(rows, dtype=torch.float64).log()


def loglik_of_answers() -> Tensor:
    """(K, N) of all answers."""
    return torch.tensor([member.distribution() for member in MEMBERS], dtype=torch.float64).log()


def steps_of(tokens: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Members' log-probabilities (T, K, V) and prefix log-weights (T, K) along one answer."""
    tables = answer_tables(tokens)
    scores = tables.gather(-1, torch.tensor(tokens).expand(3, -1)[..., None]).squeeze(-1)
    return tables.transpose(0, 1), prefix_log_weights(LOG_WEIGHTS, scores).T


def test_whole_answer_measures_follow_their_definitions() -> None:
    """Oracle U3, the answers read as one big vocabulary."""
    loglik, members = loglik_of_answers(), [member.distribution() for member in MEMBERS]

    assert mutual_information(loglik, LOG_WEIGHTS).item() == pytest.approx(
        oracle.mutual_information(members, WEIGHTS), rel=1e-12
    )


def test_chain_rule_of_entropy_and_mutual_information() -> None:
    """Oracle U3: averaged over answers, the steps' numbers with prefix weights add up to the answer's."""
    probability = sequence_loglik(LOG_WEIGHTS, loglik_of_answers()).exp()
    predictives = [predict(*steps_of(tokens)) for tokens in ANSWERS]

    entropy_sum = sum(p * step.total_entropy.sum() for p, step in zip(probability, predictives, strict=True))
    path_sum = sum(p * step.epistemic.sum() for p, step in zip(probability, predictives, strict=True))

    loglik = loglik_of_answers()
    torch.testing.assert_close(entropy_sum, total_entropy(loglik, LOG_WEIGHTS), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(path_sum, mutual_information(loglik, LOG_WEIGHTS), rtol=1e-12, atol=1e-12)


def test_posterior_information_averages_to_the_mutual_information() -> None:
    loglik = loglik_of_answers()
    probability = sequence_loglik(LOG_WEIGHTS, loglik).exp()

    terms = posterior_information(LOG_WEIGHTS, loglik)

    torch.testing.assert_close((probability * terms).sum(), mutual_information(loglik, LOG_WEIGHTS))
    assert bool((terms >= 0).all())
    assert terms.max() <= math.log(1 / min(WEIGHTS))


def test_weights_that_differ_between_the_two_entropies_can_go_negative() -> None:
    """Why both terms take the same weights: prefix weights in one and uniform ones in the other is no MI."""
    flat, sharp = torch.full((50,), 1 / 50), torch.tensor([1.0 - 49e-6, *[1e-6] * 49])
    members, log_weights = torch.stack([flat, sharp]).double().log(), torch.tensor([0.001, 0.999]).log()

    mismatched = total_entropy(members, log_weights) - aleatoric_entropy(members, HALVES)

    assert mismatched < -1
    assert mutual_information(members, log_weights) >= 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("num_members", [1, 2, 8])
def test_identical_members_have_no_epistemic_uncertainty(num_members: int, dtype: torch.dtype) -> None:
    one = (3 * torch.randn(1000, generator=torch.Generator().manual_seed(0))).to(dtype).log_softmax(-1)
    members, log_weights = one.expand(num_members, -1), uniform_log_weights(num_members)
    tolerance = 5e-6 if dtype == torch.float32 else 1e-12

    assert mutual_information(members, log_weights) <= tolerance
    assert predict(members, log_weights).disagreement == 0
    torch.testing.assert_close(total_entropy(members, log_weights), entropy(one))


def test_members_certain_of_different_tokens_have_only_epistemic_uncertainty() -> None:
    members = torch.eye(3, dtype=torch.float64).log()

    assert aleatoric_entropy(members, LOG_WEIGHTS).item() == 0
    assert mutual_information(members, LOG_WEIGHTS).item() == pytest.approx(oracle.entropy(WEIGHTS))


def test_disagreement_is_the_weight_of_those_who_would_have_said_something_else() -> None:
    members = torch.tensor([[0.8, 0.1, 0.1], [0.2, 0.7, 0.1], [0.2, 0.1, 0.7]]).log()

    assert predict(members, LOG_WEIGHTS).disagreement.item() == pytest.approx(0.5)


def test_member_with_two_favourites_agrees_with_either() -> None:
    """Logits in few bits often tie."""
    members = torch.tensor([[0.4, 0.4, 0.2], [0.1, 0.8, 0.1]]).log()

    assert predict(members, HALVES).disagreement.item() == 0


def test_everyone_disagrees_with_a_compromise() -> None:
    """The mixture may prefer a token that no member ranks first."""
    members = torch.tensor([[0.51, 0.49, 0.0], [0.0, 0.49, 0.51]]).log()

    assert predict(members, HALVES).disagreement.item() == pytest.approx(1.0)


def test_impossible_tokens_do_not_poison_the_numbers() -> None:
    """Grammar masks put -inf in all members' rows."""
    members = torch.tensor([[0.5, 0.5, 0.0], [0.25, 0.75, 0.0]]).log()

    predictive = predict(members, HALVES)

    assert predictive.total_entropy.item() == pytest.approx(oracle.entropy([0.375, 0.625]))
    assert math.isfinite(predictive.epistemic.item())
    assert kl_divergence(members[0], members[1]).item() == pytest.approx(oracle.kl([0.5, 0.5], [0.25, 0.75]))


def test_a_step_reports_what_the_single_functions_do() -> None:
    members = torch.randn(4, 3, 50, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    log_weights = torch.randn(4, 3, generator=torch.Generator().manual_seed(1)).log_softmax(-1)

    step = predict(members, log_weights)

    mixture = mixture_logprobs(members, log_weights)
    dissents = members.argmax(-1) != mixture.argmax(-1, keepdim=True)
    expected = {
        "logprobs": mixture,
        "total_entropy": total_entropy(members, log_weights),
        "aleatoric_entropy": aleatoric_entropy(members, log_weights),
        "epistemic": mutual_information(members, log_weights),
        "disagreement": (log_weights.exp() * dissents).sum(-1),
    }
    for name, value in expected.items():
        torch.testing.assert_close(getattr(step, name), value, atol=1e-6, rtol=0, check_dtype=False)


def test_unmeasured_numbers_are_not_numbers() -> None:
    step = unmeasured(OPPOSED[0])

    assert torch.equal(step.logprobs, OPPOSED[0])
    assert all(getattr(step, name).isnan().all() for name in ("total_entropy", "epistemic", "disagreement"))


def test_members_and_weights_must_fit() -> None:
    with pytest.raises(ShapeError, match="found 2 members but 3 log_weights"):
        predict(OPPOSED, LOG_WEIGHTS)


@settings(deadline=None, max_examples=150)
@given(predictions())
def test_one_prediction_follows_definitions_and_bounds(prediction: tuple[Tensor, Tensor]) -> None:
    members, log_weights = prediction
    lists, weights = members.exp().tolist(), log_weights.exp().tolist()

    mutual, total = mutual_information(members, log_weights), total_entropy(members, log_weights)

    assert mutual.item() == pytest.approx(oracle.mutual_information(lists, weights), abs=1e-10)
    assert 0 <= mutual <= min(oracle.entropy(weights), total.item()) + 1e-10
    assert total <= math.log(members.shape[-1]) + 1e-10
    torch.testing.assert_close(total - mutual, aleatoric_entropy(members, log_weights), atol=1e-10, rtol=0)


@settings(deadline=None, max_examples=100)
@given(predictions())
def test_mutual_information_exceeds_pinskers_bound(prediction: tuple[Tensor, Tensor]) -> None:
    members, log_weights = prediction
    mean = mixture_logprobs(members, log_weights).exp()

    distance = (members.exp() - mean).abs().sum(-1)

    bound = (log_weights.exp() * distance.square()).sum() / 2
    assert mutual_information(members, log_weights) >= bound - 1e-10


@settings(deadline=None, max_examples=100)
@given(predictions())
def test_information_of_two_members_is_below_their_total_variation(prediction: tuple[Tensor, Tensor]) -> None:
    members = prediction[0][[0, -1]]

    distance = (members[0].exp() - members[1].exp()).abs().sum() / 2

    assert mutual_information(members, HALVES) <= math.log(2) * distance + 1e-10


def test_pairs_of_members_are_as_far_apart_as_a_two_member_mixture() -> None:
    members = torch.randn(3, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64).log_softmax(
        -1
    )

    matrix = jensen_shannon_matrix(members)

    for first, second in itertools.product(range(3), repeat=2):
        expected = mutual_information(members[[first, second]], HALVES)
        assert matrix[first, second].item() == pytest.approx(expected.item(), abs=1e-12)
    assert functional_diversity(members).item() == pytest.approx((matrix.sum() / 6).item())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_members_choose_their_likeliest_token_and_of_equals_the_first(dtype: torch.dtype) -> None:
    probs = torch.tensor([[0.2, 0.5, 0.3], [0.1, 0.2, 0.7], [0.4, 0.2, 0.4]], dtype=dtype)

    found = predict(probs.log(), LOG_WEIGHTS)

    assert found.member_choices is not None
    assert found.member_choices.tolist() == [1, 2, 0]
    # The mixture's is the third: 0.44 against 0.21 and 0.35. The first member alone has a likelier one.
    assert found.disagreement.item() == pytest.approx(0.5)
