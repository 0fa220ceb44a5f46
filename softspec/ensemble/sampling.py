"""How answers are to be drawn: settings, checked before anything is computed.

In: numbers of the caller. Out: a `Sampling`, or an error that names the setting; seeds. Knows no prompt.
"""

import secrets
from collections.abc import Sequence

from softspec.ensemble.backend import Sampling
from softspec.errors import ConfigError

SEEDS = 2**63
COLDEST = 0.01
"""vLLM draws at this temperature where a lower one is asked for, but for 0."""


def checked_sampling(
    max_tokens: int,
    temperature: float,
    top_p: float,
    top_k: int,
    min_p: float,
    seed: int | None,
    stop: str | Sequence[str],
    n: int,
) -> Sampling:
    """The settings, if all of them mean something.

    Raises:
        ConfigError: one does not.
    """
    stops = (stop,) if isinstance(stop, str) else tuple(stop)
    checks = (
        ("max_tokens", max_tokens, _is_whole(max_tokens) and max_tokens >= 1, "a whole number from 1"),
        ("n", n, _is_whole(n) and n >= 1, "a whole number from 1"),
        (
            "temperature",
            temperature,
            temperature == 0 or COLDEST <= temperature < 1e4,
            f"0, or {COLDEST} or more",
        ),
        ("top_p", top_p, 0 < top_p <= 1, "a number above 0 and up to 1"),
        ("top_k", top_k, _is_whole(top_k) and top_k >= 0, "a whole number, 0 for off"),
        ("min_p", min_p, 0 <= min_p <= 1, "a number from 0 to 1"),
        (
            "seed",
            seed,
            seed is None or (_is_whole(seed) and 0 <= seed < SEEDS),
            "a whole number from 0, or None",
        ),
        ("stop", stop, all(isinstance(each, str) and each for each in stops), "texts that are not empty"),
    )
    for name, value, is_right, expected in checks:
        if not is_right:
            raise ConfigError(f"{name} is {value!r}: expected {expected}")
    return Sampling(float(temperature), float(top_p), top_k, float(min_p), stops)


def seed_of(seed: int | None, number: int) -> int:
    """The seed of answer `number` of a call; no two answers share their noise."""
    return secrets.randbelow(2**53) if seed is None else (seed + number) % SEEDS


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
