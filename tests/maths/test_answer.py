"""An answer's summary from its tokens' numbers."""

import math

import pytest

from softspec.artefact.manifest import WeightsRule
from softspec.maths.answer import METRICS, AnswerUncertainty, TokenUncertainty, summarise
from tests.support import oracle

WEIGHTS = (0.5, 0.3, 0.2)
LOG_WEIGHTS = [math.log(weight) for weight in WEIGHTS]
HALVES = [math.log(0.5)] * 2


def token(
    member_log_probs: tuple[float, ...],
    log_prob: float = -1.0,
    epistemic: float = 0.0,
    disagreement: float = 0.0,
) -> TokenUncertainty:
    return TokenUncertainty(
        token_id=5,
        log_prob=log_prob,
        total_entropy=epistemic + 0.5,
        aleatoric_entropy=0.5,
        epistemic=epistemic,
        disagreement=disagreement,
        member_log_probs=member_log_probs,
    )


TOKENS = [token((-1.0, -2.0, -3.0), -1.4, 0.1, 0.3), token((-0.5, -0.1, -4.0), -0.3, 0.7, 0.0)]


def test_answer_sums_and_means_its_tokens() -> None:
    answer = summarise(TOKENS, LOG_WEIGHTS)

    assert answer.num_tokens == 2
    assert answer.log_prob == pytest.approx(-1.7)
    assert answer.epistemic == pytest.approx(0.4)
    assert answer.max_epistemic == pytest.approx(0.7)
    assert answer.total_entropy == pytest.approx(answer.aleatoric_entropy + answer.epistemic)
    assert answer.disagreement == pytest.approx(0.15)
    assert answer.max_disagreement == pytest.approx(0.3)
    assert answer.member_log_probs == pytest.approx((-1.5, -2.1, -7.0))


def test_answer_information_is_the_posteriors_distance_from_the_prior() -> None:
    answer = summarise(TOKENS, LOG_WEIGHTS)

    posterior = oracle.responsibilities((-1.5, -2.1, -7.0), WEIGHTS, 1.0)
    assert answer.member_weights == pytest.approx(posterior)
    assert answer.mutual_information == pytest.approx(oracle.kl(posterior, WEIGHTS))


def test_answer_with_fixed_weights_adds_what_each_token_tells() -> None:
    """Members are redrawn at every token, so weights stay and information adds up."""
    answer = summarise(TOKENS, LOG_WEIGHTS, "fixed")

    posteriors = [oracle.responsibilities(t.member_log_probs, WEIGHTS, 1.0) for t in TOKENS]
    assert answer.member_weights == pytest.approx(WEIGHTS)
    assert answer.mutual_information == pytest.approx(sum(oracle.kl(p, WEIGHTS) for p in posteriors))


@pytest.mark.parametrize("rule", ["prefix_posterior", "fixed"])
def test_empty_answer_is_certain_and_keeps_the_prior(rule: WeightsRule) -> None:
    answer = summarise([], LOG_WEIGHTS, rule)

    assert answer == AnswerUncertainty(0, 0, 0, 0, 0, 0, 0, 0, 0, (0, 0, 0), answer.member_weights)
    assert answer.member_weights == pytest.approx(WEIGHTS)


def test_answer_of_thousands_of_tokens_keeps_its_information_bounded() -> None:
    answer = summarise([token((-1.0, -2.0))] * 4000, HALVES)

    assert answer.mutual_information == pytest.approx(math.log(2))
    assert answer.member_weights == pytest.approx((1.0, 0.0))


def test_answer_survives_a_member_that_excludes_it() -> None:
    answer = summarise([token((-1.0, -math.inf))], HALVES)

    assert answer.member_weights == (1.0, 0.0)
    assert answer.mutual_information == pytest.approx(math.log(2))


def test_every_policy_metric_is_a_number_of_the_answer() -> None:
    answer = summarise(TOKENS, LOG_WEIGHTS)

    assert all(isinstance(getattr(answer, metric), float) for metric in METRICS)
