"""Draws: their frequencies, their replay, and the filters and penalties against naive oracles."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from softspec.maths.sampling import apply_penalties, draw_tokens, filter_logprobs, gumbel_noise
from tests.support import oracle

LARGEST_SEED = 2**63 - 1


def random_logprobs(rows: int, vocab_size: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, vocab_size, generator=torch.Generator().manual_seed(seed)).log_softmax(-1)


def draw(
    logprobs: Tensor,
    seeds: Tensor,
    positions: Tensor,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
) -> Tensor:
    rows = len(logprobs)
    return draw_tokens(
        logprobs,
        torch.full((rows,), temperature),
        torch.full((rows,), top_k),
        torch.full((rows,), top_p),
        torch.full((rows,), min_p),
        seeds,
        positions,
    )


def settings_of(rows: int, **changed: float) -> dict[str, Tensor]:
    values = {"temperature": 1.0, "top_p": 1.0, "min_p": 0.0, **changed}
    top_k = int(values.pop("top_k", 0))
    return {name: torch.full((rows,), value) for name, value in values.items()} | {
        "top_k": torch.full((rows,), top_k)
    }


@pytest.mark.parametrize("seed", [0, 1, 2**31, 2**53 + 1, LARGEST_SEED])
@pytest.mark.parametrize("position", [0, 7, 10**6])
def test_noise_is_the_published_generator(seed: int, position: int) -> None:
    """Integer for integer, so that any other machine, language or device can replay an answer."""
    noise = gumbel_noise(torch.tensor([seed]), torch.tensor([position]), 50)

    expected = [oracle.gumbel(seed, position, token_id) for token_id in range(50)]
    assert noise[0].tolist() == pytest.approx(expected, rel=1e-12)


def test_noise_of_the_finaliser_matches_the_reference_vector() -> None:
    """The first outputs of SplitMix64 for state 1234567, as listed with its public reference code."""
    state, outputs = 1234567, []
    for _ in range(3):
        state = (state + 0x9E3779B97F4A7C15) % 2**64
        outputs.append(oracle.splitmix64(state))

    assert outputs == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_noise_follows_the_gumbel_distribution() -> None:
    noise = gumbel_noise(torch.arange(20), torch.zeros(20, dtype=torch.int64), 5000).flatten()

    assert stats.kstest(noise.numpy(), "gumbel_r").pvalue > 1e-3
    assert bool(noise.isfinite().all())


@pytest.mark.parametrize("axis", ["seeds", "positions", "tokens"])
def test_neighbouring_counters_give_independent_noise(axis: str) -> None:
    seeds, positions = torch.arange(2000), torch.zeros(2000, dtype=torch.int64)
    if axis == "tokens":
        noise = gumbel_noise(seeds[:1], positions[:1], 2000)[0]
    elif axis == "seeds":
        noise = gumbel_noise(seeds, positions, 1)[:, 0]
    else:
        noise = gumbel_noise(positions, seeds, 1)[:, 0]

    correlation = torch.corrcoef(torch.stack([noise[:-1], noise[1:]]))[0, 1]

    assert abs(correlation) < 4 / math.sqrt(2000)
    assert len(noise.unique()) == 2000


@pytest.mark.parametrize("axis", ["seeds", "positions"])
def test_draw_frequencies_are_the_probabilities(axis: str) -> None:
    """Chi-square over many seeds at one position, and over many positions of one seed."""
    count = 20_000
    logprobs = random_logprobs(1, 12)
    counters, constant = torch.arange(count), torch.full((count,), 11)
    seeds, positions = (counters, constant) if axis == "seeds" else (constant, counters)

    drawn = draw(logprobs.expand(count, -1), seeds, positions)

    observed = torch.bincount(drawn, minlength=12).numpy()
    probabilities = logprobs[0].double().softmax(-1).numpy()
    assert stats.chisquare(observed, probabilities * count).pvalue > 1e-3


def test_temperature_and_filters_shape_the_frequencies() -> None:
    count, logprobs = 20_000, random_logprobs(1, 12)
    allowed = oracle.survivors(logprobs[0].tolist(), 0.7, 6, 0.9, 0.05)

    drawn = draw(
        logprobs.expand(count, -1),
        torch.arange(count),
        torch.zeros(count, dtype=torch.int64),
        0.7,
        6,
        0.9,
        0.05,
    )

    weights = torch.tensor(
        [math.exp(x / 0.7) if v in allowed else 0 for v, x in enumerate(logprobs[0].tolist())]
    )
    kept = sorted(allowed)
    observed = torch.bincount(drawn, minlength=12)
    expected = (weights.double() / weights.double().sum() * count)[kept]
    assert observed.sum() == observed[kept].sum()
    assert stats.chisquare(observed[kept].numpy(), expected.numpy()).pvalue > 1e-3


@settings(deadline=None, max_examples=150)
@given(
    st.integers(0, LARGEST_SEED),
    st.integers(0, 10**6),
    st.floats(0.05, 3),
    st.integers(0, 12),
    st.floats(0.01, 1),
    st.floats(0, 1),
)
def test_a_draw_is_the_oracles(
    seed: int, position: int, temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    logprobs = random_logprobs(1, 10, seed % 1000).double()
    top_p, min_p = float(torch.tensor(top_p)), float(torch.tensor(min_p))
    temperature = float(torch.tensor(temperature))
    allowed = oracle.survivors(logprobs[0].tolist(), temperature, top_k, top_p, min_p)

    drawn = draw(logprobs, torch.tensor([seed]), torch.tensor([position]), temperature, top_k, top_p, min_p)

    assert drawn.item() == oracle.draw(logprobs[0].tolist(), temperature, allowed, seed, position)


@settings(deadline=None, max_examples=150)
@given(st.integers(0, 1000), st.floats(0.1, 3), st.integers(0, 40), st.floats(0.01, 1), st.floats(0, 1))
def test_filters_keep_what_the_naive_loop_keeps(
    seed: int, temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    logprobs = random_logprobs(3, 30, seed).double()
    rows = settings_of(3, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)

    filtered = filter_logprobs(logprobs, **rows)

    for row in range(3):
        kept = set(filtered[row].isfinite().nonzero().flatten().tolist())
        values = [float(rows[name][row]) for name in ("temperature", "top_p", "min_p")]
        assert kept == oracle.survivors(logprobs[row].tolist(), values[0], top_k, values[1], values[2])
        expected = logprobs[row, sorted(kept)] / rows["temperature"][row]
        torch.testing.assert_close(filtered[row, sorted(kept)], expected)


def test_filters_that_are_off_change_nothing() -> None:
    logprobs = random_logprobs(2, 50_000)
    rows = settings_of(2) | {"top_p": torch.tensor([1.0, 0.5])}

    assert torch.equal(filter_logprobs(logprobs, **rows)[0], logprobs[0])
    assert torch.equal(filter_logprobs(logprobs, **settings_of(2)), logprobs)


def test_top_p_zero_keeps_the_likeliest_token() -> None:
    filtered = filter_logprobs(random_logprobs(1, 30), **settings_of(1, top_p=0.0))

    assert filtered.isfinite().sum() == 1


def test_tokens_that_tie_at_the_cut_all_stay() -> None:
    logprobs = torch.tensor([[0.4, 0.2, 0.2, 0.2]]).log()

    assert filter_logprobs(logprobs, **settings_of(1, top_k=2)).isfinite().sum() == 4
    assert filter_logprobs(logprobs, **settings_of(1, top_p=0.5)).isfinite().sum() == 4


def test_top_k_beyond_the_vocabulary_is_off() -> None:
    logprobs = random_logprobs(1, 30)

    assert torch.equal(filter_logprobs(logprobs, **settings_of(1, top_k=10**9)), logprobs)


def test_masked_tokens_are_never_drawn() -> None:
    """Grammar masks arrive as -inf."""
    logprobs = random_logprobs(1, 8).masked_fill(torch.arange(8) != 3, -math.inf)

    for changed in ({}, {"temperature": 0.0}, {"top_k": 5}, {"top_p": 0.9}, {"min_p": 0.1}):
        drawn = draw_tokens(
            logprobs, **settings_of(1, **changed), seeds=torch.tensor([1]), positions=torch.tensor([2])
        )
        assert drawn.item() == 3


def test_batch_does_not_change_a_draw() -> None:
    """Rows with every kind of setting, drawn together, one by one, and in another order."""
    logprobs = random_logprobs(6, 200)
    rows = {
        "temperature": torch.tensor([0.0, 0.7, 1.0, 1.3, 1.0, 0.2]),
        "top_k": torch.tensor([0, 0, 5, 0, 40, 3]),
        "top_p": torch.tensor([1.0, 0.9, 1.0, 1.0, 0.5, 1.0]),
        "min_p": torch.tensor([0.0, 0.0, 0.0, 0.1, 0.0, 0.3]),
        "seeds": torch.tensor([0, 1, LARGEST_SEED, 3, 3, 5]),
        "positions": torch.tensor([0, 9, 2, 3, 3, 100]),
    }
    order = torch.tensor([4, 1, 5, 0, 3, 2])

    together = draw_tokens(logprobs, **rows)

    alone = [draw_tokens(logprobs[g : g + 1], **{n: r[g : g + 1] for n, r in rows.items()}) for g in range(6)]
    shuffled = draw_tokens(logprobs[order], **{name: row[order] for name, row in rows.items()})
    assert torch.equal(together, torch.cat(alone))
    assert torch.equal(together[order], shuffled)


def test_greedy_takes_the_lowest_of_tied_tokens() -> None:
    logprobs = torch.tensor([[0.2, 0.4, 0.4], [0.2, 0.2, 0.6]]).log()

    drawn = draw(logprobs, torch.tensor([5, 6]), torch.tensor([0, 0]), temperature=0.0)

    assert drawn.tolist() == [1, 2]


def test_greedy_rows_ignore_the_noise_of_their_neighbours() -> None:
    logprobs = random_logprobs(2, 100)
    rows = settings_of(2) | {"temperature": torch.tensor([0.0, 1.0])}

    drawn = {
        int(draw_tokens(logprobs, **rows, seeds=torch.tensor([s, s]), positions=torch.tensor([0, 0]))[0])
        for s in range(20)
    }

    assert drawn == {int(logprobs[0].argmax())}


@settings(deadline=None, max_examples=100)
@given(
    st.lists(st.integers(0, 9), max_size=8),
    st.lists(st.integers(0, 9), max_size=8),
    st.floats(0.5, 2),
    st.floats(-2, 2),
    st.floats(-2, 2),
)
def test_penalties_follow_the_naive_loop(
    prompt_ids: list[int], output_ids: list[int], repetition: float, presence: float, frequency: float
) -> None:
    scores = 2 + random_logprobs(1, 10).double()
    prompt_mask = torch.zeros(1, 10, dtype=torch.bool)
    prompt_mask[0, prompt_ids] = True
    counts = torch.bincount(torch.tensor(output_ids, dtype=torch.int64), minlength=10)[None]
    penalties = [torch.tensor([x], dtype=torch.float64) for x in (repetition, presence, frequency)]

    penalised = apply_penalties(scores, prompt_mask, counts, *penalties)

    expected = oracle.penalise(scores[0].tolist(), prompt_ids, output_ids, repetition, presence, frequency)
    assert penalised[0].tolist() == pytest.approx(expected)


def test_penalties_keep_masked_tokens_masked() -> None:
    scores = torch.tensor([[0.0, -math.inf]])
    seen, counts = torch.tensor([[True, True]]), torch.tensor([[1, 1]])

    penalised = apply_penalties(
        scores, seen, counts, torch.tensor([2.0]), torch.tensor([-1.0]), torch.tensor([-1.0])
    )

    assert penalised.tolist() == [[2.0, -math.inf]]


@pytest.mark.vllm
@pytest.mark.parametrize("zero", [-20.0, 0.0, 2.0, 20.0])
def test_penalties_are_vllms_wherever_zero_is(zero: float) -> None:
    from vllm.v1.sample.ops.penalties import apply_all_penalties

    scores = zero + random_logprobs(2, 10)
    prompt_ids, output_ids = torch.tensor([[1, 2, 2], [3, 10, 10]]), [[2, 5, 5], [7]]
    prompt_mask = torch.zeros(2, 10, dtype=torch.bool)
    prompt_mask[0, [1, 2]] = True
    prompt_mask[1, 3] = True
    counts = torch.stack([torch.bincount(torch.tensor(ids), minlength=10) for ids in output_ids])
    repetition, presence, frequency = (torch.tensor([x, y]) for x, y in ((1.3, 0.8), (0.5, 0.0), (0.2, -0.4)))

    theirs = apply_all_penalties(scores.clone(), prompt_ids, presence, frequency, repetition, output_ids)

    ours = apply_penalties(scores, prompt_mask, counts, repetition, presence, frequency)
    torch.testing.assert_close(ours, theirs)


@pytest.mark.vllm
@pytest.mark.parametrize(("top_k", "top_p"), [(5, 1.0), (30, 0.8), (7, 0.3), (30, 0.01)])
def test_filters_are_vllms(top_k: int, top_p: float) -> None:
    from vllm.v1.sample.ops.topk_topp_sampler import apply_top_k_top_p_pytorch

    logprobs = random_logprobs(20, 30)

    theirs = apply_top_k_top_p_pytorch(logprobs.clone(), torch.full((20,), top_k), torch.full((20,), top_p))

    assert torch.equal(filter_logprobs(logprobs, **settings_of(20, top_k=top_k, top_p=top_p)), theirs)
