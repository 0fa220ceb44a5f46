"""Aliases: names that stand for one of several ensembles, drawn by weight, and for one caller always for the same.

In: weights of ensembles by alias, and what ties the requests of a caller together. Out: the ensemble that is asked.
Knows neither HTTP nor the engine.
"""

import hashlib
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from itertools import accumulate

Weights = Mapping[str, float]
"""Ensemble -> its weight: shares are weights over their sum, which is above 0."""
STICKY = ("prompt_cache_key", "safety_identifier", "user")
"""Fields by which requests say what they belong to, the narrowest first; Anthropic's have `metadata.user_id`."""


class Aliases(Mapping[str, Weights]):
    """The weights that hold now, by alias."""

    def __init__(self, weights: Mapping[str, Weights] | None = None) -> None:
        self._weights = dict(weights or {})

    def __getitem__(self, alias: str) -> Weights:
        return self._weights[alias]

    def __iter__(self) -> Iterator[str]:
        return iter(self._weights)

    def __len__(self) -> int:
        return len(self._weights)

    def put(self, alias: str, weights: Weights) -> None:
        """Let an alias stand for this from the next request on."""
        self._weights[alias] = dict(weights)

    def chosen(self, alias: str, sticky: str) -> str:
        """The ensemble that an alias stands for, for all requests that have `sticky` in common."""
        return model_at(self[alias], point_of(alias, sticky))


def point_of(alias: str, sticky: str) -> float:
    """The place of a caller in [0, 1): the same whenever they ask this alias, and all callers evenly spread."""
    text = f"{alias}\0{sticky}".encode(errors="backslashreplace")
    number = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")
    return (number >> 11) / 2**53  # as many bits as a float has, or the largest would become 1


def model_at(weights: Weights, point: float) -> str:
    """The ensemble at a point of [0, 1), which the ensembles divide by weight, in the order of their names.

    Of two ensembles the one whose share grows keeps all its callers, whatever the order in which weights are given.
    """
    names = sorted(name for name, weight in weights.items() if weight > 0)
    ends = list(accumulate(weights[name] for name in names))
    return names[bisect_right(ends, point * ends[-1], hi=len(ends) - 1)]


def sticky_in(request: object) -> str | None:
    """What a request says that it belongs to, a conversation or a user; None if nothing.

    A request is the fields of a body, or an object that has them.
    """
    metadata = _field(request, "metadata")
    found = [_field(request, name) for name in STICKY]
    found.append(metadata.get("user_id") if isinstance(metadata, Mapping) else None)
    return next((text for text in found if isinstance(text, str) and text), None)


def _field(request: object, name: str) -> object:
    return request.get(name) if isinstance(request, Mapping) else getattr(request, name, None)
