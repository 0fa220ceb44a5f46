"""The log of a training run as curves.

In: `training.jsonl`. Out: series over steps, long ones as means of stretches. Draws nothing.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from softspec.errors import DataError

LOG_NAME = "training.jsonl"
MOST_POINTS = 500
"""Of a curve; longer ones are averaged."""


@dataclass(frozen=True)
class TrainingLog:
    """P points: `steps` (P,), each fact of a step as (P,) or (P, K); means over `stretch` steps.

    `held_out` are the looks at held-out data, (step, facts), in their order.
    """

    steps: list[float]
    facts: Mapping[str, np.ndarray]
    held_out: Sequence[tuple[int, Mapping[str, Any]]]
    stretch: int
    num_steps: int
    seconds: float
    reseeded: Sequence[tuple[int, int, int]]

    def held_out_curve(self, name: str) -> tuple[list[float], list[float]]:
        """Steps and values of one held-out number; empty where it was not measured."""
        known = [(step, facts[name]) for step, facts in self.held_out if facts.get(name) is not None]
        return [float(step) for step, _ in known], [float(value) for _, value in known]


def read_training(path: Path) -> TrainingLog | None:
    """The log, or None where there is none, or no step in it.

    Raises:
        DataError: a line is no event of a training.
    """
    if not path.is_file():
        return None
    steps: list[dict[str, Any]] = []
    held_out: list[tuple[int, Mapping[str, Any]]] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            event = json.loads(line)
            step = int(event["step"])
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{path}:{number}: expected an event of 'softspec train' with its step: {error!r}"
            ) from error
        if "held_out" in event:
            held_out.append((step, event["held_out"]))
        elif "mixture_nll" in event:
            steps.append(event)
    if not steps:
        return None
    stretch = -(-len(steps) // MOST_POINTS)
    return TrainingLog(
        steps=_means([event["step"] for event in steps], stretch).tolist(),
        facts=_facts(steps, lambda values: _means(values, stretch)),
        held_out=held_out,
        stretch=stretch,
        num_steps=int(steps[-1]["step"]),
        seconds=float(sum(event.get("seconds", 0.0) for event in steps)),
        reseeded=[
            (int(event["step"]), member, donor)
            for event in steps
            for member, donor in zip(event.get("starved", ()), event.get("reseeded_from") or (), strict=False)
        ],
    )


CURVES = ("renyi_alpha", "loss", "mixture_nll", "member_nll", "load", "routing_perplexity", "gradient_norms")
PREFERENCES = ("margins", "accuracies")


def _facts(
    steps: Sequence[Mapping[str, Any]], means: Callable[[Sequence[Any]], np.ndarray]
) -> dict[str, np.ndarray]:
    """The facts that every step has."""
    return {
        name: means([event[name] for event in steps])
        for name in (*CURVES, *PREFERENCES)
        if all(event.get(name) is not None for event in steps)
    }


def _means(values: Sequence[Any], stretch: int) -> np.ndarray:
    """Means of stretches of the first axis; the last may be shorter."""
    array = np.asarray(values, dtype=float)
    return np.stack([array[first : first + stretch].mean(0) for first in range(0, len(array), stretch)])
