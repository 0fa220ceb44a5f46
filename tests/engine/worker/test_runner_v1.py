"""Groups in vLLM's own sampler, against vLLM's own sampler: constraints act on members, adjustments on the mixture."""

import math
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor

if TYPE_CHECKING:
    from vllm import SamplingParams

    from tests.support.sampler_v1 import SamplerV1

pytestmark = pytest.mark.vllm

VOCAB_SIZE = 30
OUTPUT = (7, 9, 7)
WORD = [[9, 7, 12], [20]]
"""Its second token sequence is one token, its first is about to be completed."""

SOFT: dict[str, dict[str, Any]] = {
    "nothing": {},
    "temperature": {"temperature": 0.6},
    "top_k": {"top_k": 4},
    "top_p": {"top_p": 0.7},
    "min_p": {"min_p": 0.2},
    "repetition_penalty": {"repetition_penalty": 1.5},
    "repetition_reward": {"repetition_penalty": 0.7},
    "presence_penalty": {"presence_penalty": 1.1},
    "frequency_penalty": {"frequency_penalty": -0.8},
    "logit_bias": {"logit_bias": {2: 5.0, 7: -3.5, 11: 99.0, 13: -99.5}},
    "all": {
        "temperature": 1.3,
        "top_k": 12,
        "top_p": 0.9,
        "min_p": 0.02,
        "repetition_penalty": 1.2,
        "presence_penalty": 0.4,
        "frequency_penalty": 0.3,
        "logit_bias": {2: 1.0, 7: -1.5},
    },
}
HARD: dict[str, tuple[dict[str, Any], set[int]]] = {
    "allowed_token_ids": ({"allowed_token_ids": [2, 5, 7, 20]}, {2, 5, 7, 20}),
    "bad_words": ({"bad_words": WORD}, set(range(VOCAB_SIZE)) - {12, 20}),
    "min_tokens": ({"min_tokens": 5, "stop_token_ids": [4, 8]}, set(range(VOCAB_SIZE)) - {4, 8}),
    "logit_bias": ({"logit_bias": {6: -100.0, 7: -1e9, 8: -math.inf}}, set(range(VOCAB_SIZE)) - {6, 7, 8}),
    "all": (
        {
            "allowed_token_ids": [2, 4, 5, 6, 7, 20],
            "bad_words": WORD,
            "min_tokens": 5,
            "stop_token_ids": [4],
            "logit_bias": {6: -100.0, 5: 2.0},
        },
        {2, 5, 7},
    ),
}


def params(settings: dict[str, Any], **more: Any) -> "SamplingParams":
    from vllm import SamplingParams

    settings = dict(settings)
    words = settings.pop("bad_words", None)
    found = SamplingParams(**{"seed": 3, **settings, **more})
    found._bad_words_token_ids = words  # what vLLM's front end makes of words
    found._all_stop_token_ids = set(found.stop_token_ids or ())
    return found


def sampler(**options: Any) -> "SamplerV1":
    from tests.support.sampler_v1 import SamplerV1

    return SamplerV1(VOCAB_SIZE, **options)


def some_logits(rows: int, seed: int = 0) -> Tensor:
    """On both sides of zero, as logits are."""
    return 3 + 4 * torch.randn(rows, VOCAB_SIZE, generator=torch.Generator().manual_seed(seed))


def possible(logprobs: Tensor) -> set[int]:
    return set(logprobs.isfinite().nonzero().flatten().tolist())


@pytest.mark.parametrize("name", [*SOFT, "allowed_token_ids", "bad_words", "min_tokens"])
@pytest.mark.parametrize("seed", range(3))
def test_one_member_draws_from_what_vllm_draws_from(name: str, seed: int) -> None:
    from tests.support.sampler_v1 import distribution

    settings = SOFT[name] if name in SOFT else HARD[name][0]
    logits = some_logits(1, seed)
    stock = sampler(with_groups=False, logprobs_mode="processed_logprobs")
    stock.enter("ordinary", params(settings, logprobs=VOCAB_SIZE, seed=None), OUTPUT)
    ours = sampler()
    ours.enter_group("alone", [0.0], params(settings), OUTPUT)

    expected = distribution(stock.step(logits), VOCAB_SIZE)
    found, _ = ours.drawn_from(logits)

    assert possible(found[0]) == possible(expected)
    torch.testing.assert_close(found[0].exp(), expected.exp(), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("settings", SOFT.values(), ids=SOFT)
def test_one_member_is_the_ordinary_request_digit_for_digit(settings: dict[str, Any]) -> None:
    """Greedy: the token, its log-probability, its rank and the likeliest tokens."""
    settings = {**settings, "temperature": 0.0, "logprobs": 5}
    stock, ours = sampler(with_groups=False), sampler()
    stock.enter("ordinary", params(settings), OUTPUT)
    ours.enter_group("alone", [0.0], params(settings), OUTPUT)

    for seed in range(20):
        logits = some_logits(1, seed)
        expected, found = stock.step(logits), ours.step(logits)

        assert torch.equal(found.sampled_token_ids, expected.sampled_token_ids)
        assert found.logprobs_tensors is not None
        assert expected.logprobs_tensors is not None
        assert torch.equal(found.logprobs_tensors.logprobs[:, :6], expected.logprobs_tensors.logprobs)
        token_ids = found.logprobs_tensors.logprob_token_ids[:, :6]
        assert torch.equal(token_ids, expected.logprobs_tensors.logprob_token_ids)
        assert torch.equal(
            found.logprobs_tensors.selected_token_ranks, expected.logprobs_tensors.selected_token_ranks
        )


@pytest.mark.parametrize(("settings", "allowed"), HARD.values(), ids=HARD)
def test_constraints_act_on_every_member_before_they_are_mixed(
    settings: dict[str, Any], allowed: set[int]
) -> None:
    logits = some_logits(3, 1)
    log_weights = torch.tensor([0.5, 0.3, 0.2]).log()
    ours = sampler()
    ours.enter_group("group", log_weights.tolist(), params(settings, temperature=0.0), OUTPUT)

    found, output = ours.drawn_from(logits)

    members = logits.masked_fill(~torch.isin(torch.arange(VOCAB_SIZE), torch.tensor([*allowed])), -math.inf)
    members = members.log_softmax(-1)
    numbers = ours.numbers("group", output)
    assert possible(found[0]) == allowed
    assert numbers.member_log_probs == pytest.approx(members[:, numbers.token_id].tolist(), abs=1e-5)
    mixture = (log_weights[:, None] + members).logsumexp(0)
    assert numbers.log_prob == pytest.approx(float(mixture[numbers.token_id]), abs=1e-5)
    assert numbers.total_entropy == pytest.approx(
        float(-(mixture.exp() * mixture.clamp_min(-99)).sum()), abs=1e-5
    )
    assert output.sampled_token_ids.flatten().tolist() == [numbers.token_id] * 3


@pytest.mark.parametrize("as_grammar", [False, True], ids=["allowed_token_ids", "grammar"])
def test_a_constraint_is_the_same_by_whatever_name(as_grammar: bool) -> None:
    """Two members for whom "yes" and "no" have (0.0008, 0.0002) and (0.1, 0.8): the first one's vote counts in full."""
    yes, no = 10, 11
    probs = torch.full((2, VOCAB_SIZE), 0.999 / (VOCAB_SIZE - 2))
    probs[1] = 0.1 / (VOCAB_SIZE - 2)
    probs[:, yes], probs[:, no] = torch.tensor([0.0008, 0.1]), torch.tensor([0.0002, 0.8])
    logits, settings = probs.log(), {"allowed_token_ids": [yes, no]}
    if as_grammar:
        # Where the model runner applies it: in the logits that reach the sampler.
        keep = torch.isin(torch.arange(VOCAB_SIZE), torch.tensor([yes, no]))
        logits, settings = logits.masked_fill(~keep, -math.inf), {}
    ours = sampler()
    ours.enter_group("group", [math.log(0.5)] * 2, params(settings))

    found, _ = ours.drawn_from(logits)

    assert found[0, yes].exp() == pytest.approx((0.8 + 1 / 9) / 2, abs=1e-4)
    assert possible(found[0]) == {yes, no}


def test_a_forced_token_moves_no_belief() -> None:
    ours = sampler()
    ours.enter_group("group", [math.log(0.5)] * 2, params({"allowed_token_ids": [17]}))

    numbers = ours.numbers("group", ours.step(some_logits(2)))

    assert numbers.token_id == 17
    assert (numbers.log_prob, *numbers.member_log_probs) == pytest.approx((0.0, 0.0, 0.0), abs=1e-6)
    assert (numbers.total_entropy, numbers.epistemic) == pytest.approx((0.0, 0.0), abs=1e-6)


@pytest.mark.parametrize("settings", SOFT.values(), ids=SOFT)
def test_adjustments_leave_the_numbers_of_the_mixture_alone(settings: dict[str, Any]) -> None:
    logits, ours = some_logits(2), sampler()
    ours.enter_group("group", [math.log(0.5)] * 2, params(settings), OUTPUT)

    numbers = ours.numbers("group", ours.step(logits))

    members = logits.log_softmax(-1)
    assert numbers.member_log_probs == pytest.approx(members[:, numbers.token_id].tolist(), abs=1e-5)


def test_equal_members_draw_from_what_one_of_them_would() -> None:
    """Every adjustment at once: mixing the same logits restores their scale."""
    from tests.support.sampler_v1 import distribution

    logits = some_logits(1)
    stock = sampler(with_groups=False, logprobs_mode="processed_logprobs")
    stock.enter("ordinary", params(SOFT["all"], logprobs=VOCAB_SIZE, seed=None), OUTPUT)
    ours = sampler()
    ours.enter_group("group", [math.log(0.5), math.log(0.3), math.log(0.2)], params(SOFT["all"]), OUTPUT)

    found, _ = ours.drawn_from(logits.repeat(3, 1))

    expected = distribution(stock.step(logits), VOCAB_SIZE)
    torch.testing.assert_close(found[0].exp(), expected.exp(), atol=1e-5, rtol=1e-4)


def test_ordinary_rows_are_what_they_are_without_groups() -> None:
    logits = some_logits(4)
    stock, ours = sampler(with_groups=False), sampler()
    everything = SOFT["all"] | HARD["bad_words"][0] | {"temperature": 0.0, "logprobs": 3}
    for each in (stock, ours):
        each.enter("asks", params(everything), OUTPUT)
        each.enter("asks-not", params({"temperature": 0.0}), OUTPUT)
    ours.enter_group("group", [math.log(0.5)] * 2, params(HARD["all"][0]), OUTPUT)

    expected, found = stock.step(logits[:2]), ours.step(logits)

    assert torch.equal(found.sampled_token_ids[:2], expected.sampled_token_ids)
    assert found.logprobs_tensors is not None
    assert expected.logprobs_tensors is not None
    assert torch.equal(found.logprobs_tensors.logprobs[:2, :4], expected.logprobs_tensors.logprobs)
