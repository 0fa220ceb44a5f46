"""Which held-out units belong together, and how they are dealt into a part to choose by and a part for the end.

In: tokenised units. Out: names of clusters, and numbers of units. Knows no models and no scores.
"""

import hashlib
import math
from collections import Counter
from collections.abc import Sequence

from softspec.errors import DataError
from softspec.train.config import TrainConfig
from softspec.train.data.units import Unit

FEWEST_GROUPS = 20
"""With fewer groups their pieces are what is drawn: a standard error over a handful of groups means nothing."""
FEWEST_CLUSTERS = 8
"""The fewest clusters of a part; below that no difference could be told from chance."""


def pieces(units: Sequence[Unit], config: TrainConfig) -> list[str]:
    """The name of what each unit is routed with: itself, or up to `group_rows` units of its group, as in training."""
    if config.granularity != "group":
        return [str(number) for number in range(len(units))]
    seen: Counter[str] = Counter()
    names = []
    for unit in units:
        bundle = str(unit.bundle)
        names.append(f"{bundle} {seen[bundle] // config.group_rows}")
        seen[bundle] += 1
    return names


def check_groups(units: Sequence[Unit], config: TrainConfig, whence: str) -> None:
    """Check that units which are routed by group have one.

    Raises:
        DataError: one has not.
    """
    for number, unit in enumerate(units):
        if config.granularity == "group" and unit.bundle is None:
            raise DataError(
                f"{whence}: example {number + 1} has no 'group', expected one for granularity group"
            )


def clusters(units: Sequence[Unit], config: TrainConfig) -> list[str]:
    """The name of what each unit is drawn with: its group where there are many, else its piece or its prompt.

    Units of one cluster are not independent. They come into the same part, and standard errors are over clusters.
    """
    bundles = [unit.bundle for unit in units]
    if None not in bundles and len(set(bundles)) >= FEWEST_GROUPS:
        return [str(bundle) for bundle in bundles]
    if config.granularity == "group":
        return pieces(units, config)
    return [_hash(unit.completions[0].prompt_ids) for unit in units]


def deal(
    units: Sequence[Unit], config: TrainConfig, share: float, whence: str
) -> tuple[list[int], list[int]]:
    """The numbers of the units of two parts, of which the second has about `share` of the clusters.

    Every source has its share in both, and so has every group that is not kept whole. It depends on what the units
    are, by a hash, and not on their order.

    Args:
        whence: where the units come from, for messages.
    Raises:
        DataError: a part would have too few clusters.
    """
    check_groups(units, config, whence)
    names = clusters(units, config)
    order: dict[str, tuple[str, str, str]] = {}
    for name, unit in zip(names, units, strict=True):
        group = _hash(unit.bundle) if config.granularity == "group" else ""
        order.setdefault(name, (unit.completions[0].source or "", group, _hash(name)))
    ranked = sorted(order, key=lambda name: order[name])
    second = {
        name
        for place, name in enumerate(ranked)
        if math.floor(share * (place + 1)) > math.floor(share * place)
    }
    fewest = min(len(second), len(ranked) - len(second))
    if fewest < FEWEST_CLUSTERS:
        raise DataError(
            f"{whence} has {len(ranked)} different prompts or groups, of which one part would get {fewest}: expected "
            f"at least {FEWEST_CLUSTERS} in each part; give more rows or another --final-share"
        )
    parts: tuple[list[int], list[int]] = [], []
    for number, name in enumerate(names):
        parts[name in second].append(number)
    return parts


def _hash(value: object) -> str:
    return hashlib.sha256(repr(value).encode()).hexdigest()
