"""What a run must know of its data beforehand, from one pass over them.

In: tokenised units. Out: a `Survey`.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

from tqdm import tqdm

from softspec.errors import DataError
from softspec.train.data.units import Unit
from softspec.train.processes import is_main_process


@dataclass(frozen=True)
class Survey:
    """Facts of all units together.

    `digest` tells whether two runs saw the same tokens, bundles and weights in the same order; `mean_length` is that of
    a unit's completions, in tokens; `bundles` are the numbers of the units in each bundle, None where none are routed.
    """

    digest: str
    mean_length: float
    bundles: list[list[int]] | None


def survey(units: Sequence[Unit], routes_bundles: bool, data: str) -> Survey:
    """Look at every unit once.

    Args:
        routes_bundles: whether units are routed in bundles, so that each needs one.
        data: where the units come from, for messages.
    Raises:
        DataError: a unit has no bundle (`group` in its row), though bundles are routed.
    """
    digest, tokens = hashlib.sha256(), 0
    bundles: dict[str, list[int]] = {}
    bar = tqdm(units, desc="looking at the data", unit="example", delay=2, disable=not is_main_process())
    for number, unit in enumerate(bar):
        if routes_bundles:
            if unit.bundle is None:
                raise DataError(
                    f"{data}: example {number + 1} has no 'group', expected one for granularity group"
                )
            bundles.setdefault(unit.bundle, []).append(number)
        tokens += sum(len(example.completion_ids) for example in unit.completions)
        content = [[example.prompt_ids, example.completion_ids] for example in unit.completions]
        digest.update(json.dumps([content, unit.bundle, unit.weight]).encode())
    return Survey(digest.hexdigest(), tokens / len(units), list(bundles.values()) or None)
