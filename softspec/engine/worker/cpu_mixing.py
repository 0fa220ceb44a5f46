"""The mixture and its numbers on a CPU, in three passes over a group's logits that stay in the cache.

In: a step's logits, rows of groups, weights. Out: what `softspec/maths` makes of them, to rounding.
Knows neither requests nor vLLM.

PyTorch reads and writes every group's numbers a dozen times for this, and takes most of the time for exponentials;
numba's own are slower still. Those below are Cephes' `expf` and `logf` (Moshier 1989), a few operations that compilers
turn into vector instructions.
"""

import math

import numba
import numpy as np
import torch
from torch import Tensor

from softspec.maths.uncertainty import disagreement, likeliest

_BLOCK = 1024
"""So many tokens at once; sums are of blocks in float32, of their sums in float64."""
_CLEARLY_IN_RANGE = 1e-30
"""As in `softspec/maths/mixture.py`: probabilities of the mixture that are not above this are added in logs."""
ROUNDING = {"reassoc", "contract", "arcp", "nsz"}
"""Sums in any order, products added in one go; infinities and what is not a number keep their meaning."""

f32 = np.float32
i32 = np.int32


def mix_groups(logits: Tensor, rows: Tensor, log_weights: Tensor) -> tuple[Tensor, ...]:
    """Mix groups of one size, of two or more members.

    Args:
        logits: (rows, V), float32. rows, log_weights: (G, K).
    Returns:
        The members' log-probabilities (G, K, V) and log-normalisers (G, K), the fields of `Predictive`, and whether all
        members have a finite largest logit, (G,): what is said of groups in which one has none means nothing.
    """
    logits, log_weights = logits.contiguous(), log_weights.float()
    choices = likeliest(logits)[rows]
    logprobs, log_normalisers = torch.empty(*rows.shape, logits.shape[-1]), torch.empty(rows.shape)
    mixture, entropies = torch.empty(len(rows), logits.shape[-1]), torch.empty(2, len(rows))
    given, made = (logits, rows, choices, log_weights), (logprobs, log_normalisers, mixture, entropies)
    _mix_groups(*(tensor.numpy() for tensor in (*given, *made)))
    is_finite = logits[rows, choices].isfinite().all(-1)
    total, aleatoric = entropies
    dissent = disagreement(logprobs, choices, mixture, log_weights)
    epistemic = (total - aleatoric).clamp_min(0)
    return logprobs, log_normalisers, mixture, total, aleatoric, epistemic, dissent, choices, is_finite


@numba.njit(cache=True)
def _mix_groups(logits, rows, choices, log_weights, logprobs, log_normalisers, mixtures, entropies):  # type: ignore[no-untyped-def]
    num_groups, num_members = rows.shape
    probs = np.empty(logprobs.shape[1:], dtype=np.float32)
    mixed = np.empty(_BLOCK, dtype=np.float32)
    shares, log_sums = np.empty((2, num_members), dtype=np.float32)
    for group in range(num_groups):
        mixture, entropy, aleatoric = mixtures[group], 0.0, 0.0
        for k in range(num_members):
            row, weight = logits[rows[group, k]], math.exp(log_weights[group, k])
            peak, total, inner = row[choices[group, k]], 0.0, 0.0
            for start in range(0, row.size, _BLOCK):
                end = start + _BLOCK
                sums = _exponentials(row[start:end], peak, logprobs[group, k, start:end], probs[k, start:end])
                total, inner = total + sums[0], inner + sums[1]
            log_sums[k] = math.log(total)
            log_normalisers[group, k] = peak + log_sums[k]
            aleatoric += weight * (math.log(total) - inner / total)
            shares[k] = weight / total
        for start in range(0, mixture.size, _BLOCK):
            out, own = mixture[start : start + _BLOCK], logprobs[group, :, start : start + _BLOCK]
            mixed[:] = 0
            for k in range(num_members):
                _add_share(
                    mixed[: out.size], probs[k, start : start + _BLOCK], shares[k], own[k], log_sums[k]
                )
            inner, num_small = _logarithms(mixed[: out.size], out)
            entropy -= inner
            if num_small:
                _add_in_logs(mixed, own, log_weights[group], out)
        entropies[0, group], entropies[1, group] = entropy, aleatoric


@numba.njit(fastmath=ROUNDING, cache=True)
def _exponentials(logits, peak, shifted, exponentials):  # type: ignore[no-untyped-def]
    """Fill x = logit - peak and exp x; return the sums of exp x and of x exp x."""
    total, inner = f32(0), f32(0)
    for i in range(logits.size):
        x = logits[i] - peak
        near = max(x, f32(-87))  # whose exponential is the smallest normal float32, and adds nothing
        value = exp(near)
        shifted[i] = x
        exponentials[i] = value
        total += value
        inner += near * value
    return total, inner


@numba.njit(fastmath=ROUNDING, cache=True)
def _add_share(mixed, probs, share, logprobs, log_sum):  # type: ignore[no-untyped-def]
    """Add a member to the mixture, and finish its log-probabilities."""
    for i in range(mixed.size):
        mixed[i] += share * probs[i]
        logprobs[i] -= log_sum


@numba.njit(fastmath=ROUNDING, cache=True)
def _logarithms(mixed, logprobs):  # type: ignore[no-untyped-def]
    """Fill log p; return the sum of p log p, and how many p are too small."""
    total, num_small = f32(0), f32(0)
    for i in range(mixed.size):
        value = log(mixed[i])
        logprobs[i] = value
        total += mixed[i] * value
        num_small += f32(0) if mixed[i] > f32(_CLEARLY_IN_RANGE) else f32(1)
    return total, num_small


@numba.njit(cache=True)
def _add_in_logs(mixed, logprobs, log_weights, mixture):  # type: ignore[no-untyped-def]
    """The mixture's log-probabilities again, where probabilities are too small to be added."""
    for i in range(mixture.size):
        if not mixed[i] > _CLEARLY_IN_RANGE:
            peak, total = -math.inf, 0.0
            for k in range(log_weights.size):
                peak = max(peak, log_weights[k] + logprobs[k, i])
            for k in range(log_weights.size if peak > -math.inf else 0):
                total += math.exp(log_weights[k] + logprobs[k, i] - peak)
            mixture[i] = peak + math.log(total) if total > 0 else peak


@numba.njit(fastmath=ROUNDING, cache=True, inline="always")
def exp(x):  # type: ignore[no-untyped-def]
    """For x from -87 to 0."""
    power = np.floor(x * f32(1.44269504) + f32(0.5))
    rest = x - power * f32(0.693359375) + power * f32(2.12194440e-4)
    value = f32(1.9875691500e-4)
    value = value * rest + f32(1.3981999507e-3)
    value = value * rest + f32(8.3334519073e-3)
    value = value * rest + f32(4.1665795894e-2)
    value = value * rest + f32(1.6666665459e-1)
    value = value * rest + f32(5.0000001201e-1)
    value = value * rest * rest + rest + f32(1)
    return value * i32((i32(power) + i32(127)) << i32(23)).view(np.float32)


@numba.njit(fastmath=ROUNDING, cache=True, inline="always")
def log(x):  # type: ignore[no-untyped-def]
    """For x in a float32's normal range."""
    bits = f32(x).view(np.int32)
    power = i32(i32(bits - i32(0x3F3504F3)) >> i32(23))
    rest = i32(bits - i32(power << i32(23))).view(np.float32) - f32(1)
    value = f32(7.0376836292e-2)
    value = value * rest - f32(1.1514610310e-1)
    value = value * rest + f32(1.1676998740e-1)
    value = value * rest - f32(1.2420140846e-1)
    value = value * rest + f32(1.4249322787e-1)
    value = value * rest - f32(1.6668057665e-1)
    value = value * rest + f32(2.0000714765e-1)
    value = value * rest - f32(2.4999993993e-1)
    value = value * rest + f32(3.3333331174e-1)
    square, power = rest * rest, f32(power)
    value = value * rest * square - power * f32(2.12194440e-4) - f32(0.5) * square
    return rest + value + power * f32(0.693359375)
