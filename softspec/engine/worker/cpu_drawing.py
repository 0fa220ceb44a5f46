"""Seeded draws on a CPU: `perturbed_argmax` of `softspec/maths/sampling.py` in one pass over a group's scores.

Only the tokens that could still win get their noise as `gumbel_noise` computes it: -log(-log u) is at most
-log(1 - u), of which a float32 and 24 of u's bits give a bound. Some ten tokens of a vocabulary pass it.
"""

import math

import numba
import numpy as np
import torch
from torch import Tensor

from softspec.engine.worker.cpu_mixing import ROUNDING, log

_BLOCK = 1024
f32, i32, u64 = np.float32, np.int32, np.uint64
_GOLDEN = u64(0x9E3779B97F4A7C15)
_MULTIPLIERS = u64(0xBF58476D1CE4E5B9), u64(0x94D049BB133111EB)


def draw_rows(scores: Tensor, seeds: Tensor, positions: Tensor) -> Tensor:
    """One token (G,) per row of scores (G, V), float32; seeds, positions: (G,), int64."""
    tokens = torch.empty(len(scores), dtype=torch.int64)
    _draw_rows(*(tensor.numpy() for tensor in (scores.contiguous(), seeds, positions, tokens)))
    return tokens


@numba.njit(cache=True)
def _draw_rows(scores, seeds, positions, tokens):  # type: ignore[no-untyped-def]
    ceilings = np.empty(_BLOCK, dtype=np.float32)
    for row in range(tokens.size):
        state = _mixed(_mixed(u64(seeds[row]) + _GOLDEN) + u64(positions[row] + 1) * _GOLDEN)
        best, tokens[row] = -math.inf, 0
        for start in range(0, scores.shape[1], _BLOCK):
            part, before = scores[row, start : start + _BLOCK], state + u64(start) * _GOLDEN
            if not _ceilings(part, before, _bound(best), ceilings):
                continue
            for i in range(part.size):
                if ceilings[i] > _bound(best):
                    bits = _mixed(before + u64(i + 1) * _GOLDEN) >> u64(12)
                    noise = -math.log(-math.log((float(bits) + 0.5) * 2.0**-52))
                    if part[i] + noise > best:
                        best, tokens[row] = part[i] + noise, start + i


@numba.njit(fastmath=ROUNDING, cache=True)
def _ceilings(scores, state, bound, ceilings):  # type: ignore[no-untyped-def]
    """Fill what scores and noise can be at most; return how many are above the bound."""
    found = f32(0)
    for i in range(scores.size):
        bits = i32(_mixed(state + u64(i + 1) * _GOLDEN) >> u64(40))
        left = f32(i32(i32(0xFFFFFF) - bits)) + f32(2.0**-29)
        ceiling = scores[i] - log(left * f32(2.0**-24))
        ceilings[i] = ceiling
        found += f32(1) if ceiling > bound else f32(0)
    return found


@numba.njit(cache=True, inline="always")
def _bound(best):  # type: ignore[no-untyped-def]
    """What a ceiling must reach, with room for its rounding."""
    return f32(best - 1e-4 - 1e-6 * abs(best))


@numba.njit(cache=True, inline="always")
def _mixed(state):  # type: ignore[no-untyped-def]
    """The finaliser of SplitMix64."""
    state = (state ^ (state >> u64(30))) * _MULTIPLIERS[0]
    state = (state ^ (state >> u64(27))) * _MULTIPLIERS[1]
    return state ^ (state >> u64(31))
