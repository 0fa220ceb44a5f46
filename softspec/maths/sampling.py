"""Drawing one token per request from the mixture, replayable on any machine and in any batch.

In: the mixture's scores of G requests, which are its log-probabilities on the scale of logits, and their sampling
settings. Out: G token ids. Knows nothing of members.

Order of operations, all on the mixture: biases, penalties, temperature, min-p, top-k, top-p, one draw. Settings are
(G,) tensors and may live on the CPU, in pinned memory, while scores live on an accelerator: what to compute is
decided where settings live, so no decode step waits for the device.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from softspec.maths.uncertainty import likeliest

_GOLDEN = 0x9E3779B97F4A7C15 - 2**64
_MULTIPLIERS = (0xBF58476D1CE4E5B9 - 2**64, 0x94D049BB133111EB - 2**64)


@dataclass(frozen=True)
class SamplingSpec:
    """How one request draws its tokens; the defaults draw from the mixture itself.

    temperature 0 is greedy; top_k 0, top_p 1, min_p 0, repetition_penalty 1 and the other penalties 0 are
    off. `seed` is in [0, 2**63). logit_bias: (token id, what is added to its score), at most one per token.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int = 0
    logit_bias: tuple[tuple[int, float], ...] = ()


def apply_penalties(
    scores: Tensor,
    prompt_mask: Tensor,
    output_counts: Tensor,
    repetition: Tensor,
    presence: Tensor,
    frequency: Tensor,
) -> Tensor:
    """Make tokens that were seen less likely, by vLLM's rules, on scores on the scale of logits.

    The repetition penalty covers prompt and output, divides positive scores and multiplies negative ones. Presence
    and frequency cover the output only and are subtracted.

    Args:
        scores: (G, V). prompt_mask: (G, V), bool. output_counts: (G, V), integers. The penalties: (G,).
    Returns:
        (G, V), not normalised.
    """
    device = scores.device
    counts = output_counts.to(device)
    in_output = counts > 0
    factor = torch.where(in_output | prompt_mask.to(device), repetition.to(scores)[:, None], 1.0)
    return (
        torch.where(scores > 0, scores / factor, scores * factor)
        - frequency.to(scores)[:, None] * counts
        - presence.to(scores)[:, None] * in_output
    )


def filter_logprobs(
    logprobs: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor
) -> Tensor:
    """Scale by temperature, then cut by min-p, top-k and top-p, in vLLM's order; tokens that tie at a cut stay.

    Args:
        logprobs: (G, V), need not be normalised. temperature, top_p, min_p: (G,). top_k: (G,), integers.
    Returns:
        (G, V), scaled, -inf where cut, not renormalised. Rows at temperature 0 are not scaled.
    """
    scale = temperature.to(logprobs, non_blocking=True)
    scaled = logprobs / torch.where(scale > 0, scale, 1.0)[:, None]
    if bool((min_p > 0).any()):
        floor = scaled.amax(-1, keepdim=True) + min_p.to(scaled, non_blocking=True).log()[:, None]
        scaled = scaled.masked_fill(scaled < floor, -torch.inf)
    if bool(((top_k > 0) | (top_p < 1)).any()):
        scaled = scaled.masked_fill(scaled < _cut(scaled, top_k, top_p), -torch.inf)
    return scaled


def _cut(logprobs: Tensor, top_k: Tensor, top_p: Tensor) -> Tensor:
    """The smallest value (G, 1) that top-k and then top-p keep."""
    vocab_size, device = logprobs.shape[-1], logprobs.device
    top_k, top_p = top_k.to(device, non_blocking=True), top_p.to(device, non_blocking=True)
    ranked = logprobs.sort(-1, descending=True).values
    last = torch.where(top_k > 0, top_k.clamp_max(vocab_size), vocab_size)[:, None] - 1
    ranked = ranked.masked_fill(ranked < ranked.gather(-1, last), -torch.inf)
    mass = ranked.double().softmax(-1)
    mass_above = mass.cumsum(-1) - mass
    within = mass_above < torch.where(top_p < 1, top_p, 2.0).to(mass)[:, None]
    kept = within & (ranked > -torch.inf)
    kept[:, 0] = True
    return ranked.gather(-1, kept.sum(-1, keepdim=True) - 1)


def gumbel_noise(seeds: Tensor, positions: Tensor, vocab_size: int) -> Tensor:
    """Standard Gumbel noise, a function of (seed, position in the output, token id) and nothing else.

    Adding it to log-probabilities and taking the argmax draws from them. Counter-based: the state is hashed
    from seed and position, then token t gets the t-th output of SplitMix64 (Steele, Lea & Flood 2014, OOPSLA,
    fig. 14) in integer arithmetic that wraps around alike on every device.

    Args:
        seeds: (G,), int64, in [0, 2**63). positions: (G,), int64, >= 0.
    Returns:
        (G, V), float64, on the device of `seeds`; 52 random bits per number, always finite.
    """
    state = _mix(_mix(seeds + _GOLDEN) + (positions + 1) * _GOLDEN)
    counters = torch.arange(1, vocab_size + 1, dtype=torch.int64, device=seeds.device)
    bits = _shift_right(_mix(state[:, None] + counters * _GOLDEN), 12)
    noise = bits.double().add_(0.5).mul_(2.0**-52)
    return noise.log_().neg_().log_().neg_()


def perturbed_argmax(scores: Tensor, seeds: Tensor, positions: Tensor) -> Tensor:
    """A draw (G,) from scores (G, V), by noise that depends on seeds and positions, (G,) each, and nothing else."""
    return gumbel_noise(seeds, positions, scores.shape[-1]).add_(scores).argmax(-1)


def draw_tokens(
    logprobs: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    min_p: Tensor,
    seeds: Tensor,
    positions: Tensor,
    draw: Any = perturbed_argmax,
) -> Tensor:
    """One token id per row, (G,), int64: the argmax (lowest id on ties) at temperature 0, else a seeded draw.

    Args:
        logprobs: (G, V), after penalties. The others: (G,), see `filter_logprobs` and `gumbel_noise`.
        draw: `perturbed_argmax`, or what does the same faster.
    """
    is_greedy, device = temperature == 0, logprobs.device
    if bool(is_greedy.all()):
        return likeliest(logprobs)
    scores = filter_logprobs(logprobs, temperature, top_k, top_p, min_p)
    seeds, positions = seeds.to(device, non_blocking=True), positions.to(device, non_blocking=True)
    drawn = draw(scores, seeds, positions)
    if bool(is_greedy.any()):
        drawn = torch.where(temperature.to(device, non_blocking=True) == 0, likeliest(logprobs), drawn)
    return drawn


def _mix(state: Tensor) -> Tensor:
    """The finaliser of SplitMix64 on int64, modulo 2**64."""
    state = state ^ _shift_right(state, 30)
    state *= _MULTIPLIERS[0]
    state ^= _shift_right(state, 27)
    state *= _MULTIPLIERS[1]
    state ^= _shift_right(state, 31)
    return state


def _shift_right(state: Tensor, bits: int) -> Tensor:
    """The logical shift to the right; torch's own keeps the sign."""
    shifted = state >> bits
    shifted &= (1 << (64 - bits)) - 1
    return shifted
