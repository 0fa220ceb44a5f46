"""What a run must know of its data beforehand, from one pass over them.

In: tokenised units. Out: a `Survey`.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from softspec.errors import DataError
from softspec.train.config import TrainConfig
from softspec.train.objective.units import Objective


@dataclass(frozen=True)
class Survey:
    """`digest` tells whether two runs saw the same tokens, groups and weights in the same order; `mean_length` is
    that of a unit's completion, in tokens; `groups` those of all units, None unless they matter.
    """

    digest: str
    mean_length: float
    groups: list[str] | None


def survey(config: TrainConfig, objective: Objective, units: Sequence[Any]) -> Survey:
    """Look at every unit once.

    Raises:
        DataError: one has no group, though groups are routed.
    """
    digest, tokens, groups = hashlib.sha256(), 0, []
    for number, unit in enumerate(units, start=1):
        if config.granularity == "group":
            if unit.group is None:
                raise DataError(
                    f"{config.train_file}: example {number} has no 'group', expected one for granularity group"
                )
            groups.append(unit.group)
        completions = objective.completions(unit)
        tokens += sum(len(example.completion_ids) for example in completions)
        content = [[example.prompt_ids, example.completion_ids] for example in completions]
        digest.update(json.dumps([content, unit.group, unit.weight]).encode())
    return Survey(digest.hexdigest(), tokens / len(units), groups or None)
