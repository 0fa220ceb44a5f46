"""The definitions, computed slowly in plain Python floats: what the library's tensors are compared with.

In: lists. Out: lists. Shares no code with softspec.
"""

import itertools
import math
import random
from collections.abc import Iterator, Sequence

Distribution = Sequence[float]

_WORD = 2**64
_GOLDEN = 0x9E3779B97F4A7C15


def renyi_loss(loglik: Sequence[float], weights: Distribution, alpha: float) -> float:
    if alpha == 0:
        return -sum(w * a for w, a in zip(weights, loglik, strict=True))
    return -math.log(sum(w * math.exp(alpha * a) for w, a in zip(weights, loglik, strict=True))) / alpha


def responsibilities(loglik: Sequence[float], weights: Distribution, alpha: float) -> list[float]:
    shares = [w * math.exp(alpha * a) for w, a in zip(weights, loglik, strict=True)]
    return [share / sum(shares) for share in shares]


def entropy(p: Distribution) -> float:
    return -sum(x * math.log(x) for x in p if x > 0)


def kl(p: Distribution, q: Distribution) -> float:
    return sum(x * math.log(x / y) for x, y in zip(p, q, strict=True) if x > 0)


def mix(members: Sequence[Distribution], weights: Distribution) -> list[float]:
    return [sum(w * p[v] for w, p in zip(weights, members, strict=True)) for v in range(len(members[0]))]


def mutual_information(members: Sequence[Distribution], weights: Distribution) -> float:
    mean = mix(members, weights)
    return sum(w * kl(p, mean) for w, p in zip(weights, members, strict=True))


class TokenTable:
    """One member as an explicit autoregressive table: a random next-token distribution for every prefix."""

    def __init__(self, vocab_size: int, length: int, seed: int) -> None:
        generator = random.Random(seed)
        self.vocab_size, self.length = vocab_size, length
        self.table = {
            prefix: _random_distribution(generator, vocab_size)
            for size in range(length)
            for prefix in itertools.product(range(vocab_size), repeat=size)
        }

    def next_token(self, prefix: tuple[int, ...]) -> list[float]:
        return self.table[prefix]

    def probability(self, tokens: tuple[int, ...]) -> float:
        return math.prod(self.table[tokens[:t]][tokens[t]] for t in range(len(tokens)))

    def answers(self) -> Iterator[tuple[int, ...]]:
        return itertools.product(range(self.vocab_size), repeat=self.length)

    def distribution(self) -> list[float]:
        """Over all whole answers, in the order of `answers`."""
        return [self.probability(tokens) for tokens in self.answers()]


def _random_distribution(generator: random.Random, size: int) -> list[float]:
    draws = [generator.gammavariate(0.7, 1.0) + 1e-6 for _ in range(size)]
    return [draw / sum(draws) for draw in draws]


def splitmix64(state: int) -> int:
    """The reference output function, on unsigned 64-bit integers."""
    state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 % _WORD
    state = (state ^ (state >> 27)) * 0x94D049BB133111EB % _WORD
    return state ^ (state >> 31)


def gumbel(seed: int, position: int, token_id: int) -> float:
    seeded = splitmix64((seed + _GOLDEN) % _WORD)
    stream = splitmix64((seeded + (position + 1) * _GOLDEN) % _WORD)
    bits = splitmix64((stream + (token_id + 1) * _GOLDEN) % _WORD) >> 12
    return -math.log(-math.log((bits + 0.5) / 2**52))


def restore(
    logprobs: Sequence[float], weights: Distribution, logits: Sequence[Sequence[float]]
) -> list[float]:
    """The mixture's log-probabilities, raised by the members' mean log-normaliser: logits again where K is 1."""
    normalisers = [max(row) + math.log(sum(math.exp(x - max(row)) for x in row)) for row in logits]
    mean = sum(w * z for w, z in zip(weights, normalisers, strict=True))
    return [x + mean for x in logprobs]


def penalise(
    scores: Sequence[float],
    prompt_ids: Sequence[int],
    output_ids: Sequence[int],
    repetition: float,
    presence: float,
    frequency: float,
) -> list[float]:
    seen = {*prompt_ids, *output_ids}
    scores = [(x / repetition if x > 0 else x * repetition) if v in seen else x for v, x in enumerate(scores)]
    return [x - frequency * output_ids.count(v) - presence * (v in output_ids) for v, x in enumerate(scores)]


def survivors(
    logprobs: Sequence[float], temperature: float, top_k: int, top_p: float, min_p: float
) -> set[int]:
    """The tokens that may be drawn; values must not tie."""
    weights = {v: math.exp(x / temperature) for v, x in enumerate(logprobs)}
    best = max(weights.values())
    ranked = sorted((v for v in weights if weights[v] >= min_p * best), key=lambda v: -weights[v])
    ranked = ranked[:top_k] if top_k else ranked
    mass = sum(weights[v] for v in ranked)
    kept, reached = set(), 0.0
    for v in ranked:
        kept.add(v)
        reached += weights[v] / mass
        if top_p < 1 and reached >= top_p:
            break
    return kept


def draw(logprobs: Sequence[float], temperature: float, allowed: set[int], seed: int, position: int) -> int:
    return max(allowed, key=lambda v: logprobs[v] / temperature + gumbel(seed, position, v))
