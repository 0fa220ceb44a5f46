"""Outcomes become a calibration: curve, thresholds for targets, for all rows and by group, and what is left to say.

In: outcomes, and what is wanted. Out: the `Calibration` for `ensemble.json`, the targets that could not be certified,
and coverage and error by group. Knows no ensemble and no files.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from softspec.artefact.calibration import (
    CONFIDENCE,
    Calibration,
    Judged,
    Method,
    Reference,
    Target,
    Threshold,
)
from softspec.artefact.manifest import WeightsRule
from softspec.calibration import crossfit
from softspec.calibration.crossfit import share_interval
from softspec.calibration.model import fit_confidence
from softspec.calibration.outcomes import Flags, Numbers, Outcomes
from softspec.calibration.thresholds import (
    DESIGN_SHARE,
    Certified,
    Refused,
    certify_coverage,
    certify_error,
    design_rows,
    why_no_coverage,
    why_no_error,
)

FIT_SHARE = 0.5
"""Of the rows, to which several metrics are fitted; their thresholds are tested on the others."""
MOST_LEVELS = 50
"""Points of the distribution of confidences that are kept."""


@dataclass(frozen=True)
class Wanted:
    """What is to be calibrated: the method, the targets, and the probability `delta` that a target is missed."""

    method: Method = "isotonic"
    target_errors: tuple[float, ...] = (0.05,)
    target_coverages: tuple[float, ...] = ()
    delta: float = 0.1


@dataclass(frozen=True)
class Unmet:
    """A target for which no threshold is given, and why; `rows_needed` in all, estimated, None if more do not help."""

    target: Target
    reason: str
    rows_needed: int | None
    num_rows: int


@dataclass(frozen=True)
class Fitted:
    """A calibration, the targets that it lacks, and for each of its thresholds what it does to every group."""

    calibration: Calibration
    unmet: tuple[Unmet, ...]
    by_group: tuple[dict[str, Any], ...]


def fit_calibration(
    outcomes: Outcomes,
    wanted: Wanted,
    *,
    judged: Judged,
    weights_rule: WeightsRule,
    min_tokens: int,
    settings: dict[str, Any],
) -> Fitted:
    """Everything that is to be known of these rows.

    Raises:
        DataError: nothing can be said of them.
    """
    outcomes.require_enough()
    # Where the score itself is fitted, thresholds are tested on other rows; one metric needs no fit.
    design = design_rows(len(outcomes), DESIGN_SHARE if outcomes.is_single else FIT_SHARE)
    fitted_to = np.ones_like(design) if outcomes.is_single else design
    model = fit_confidence(outcomes, fitted_to, wanted.method)
    doubts = model.doubts(outcomes)
    thresholds, unmet = _thresholds(outcomes, doubts, design, wanted)
    calibration = Calibration(
        judged=judged,
        metric=outcomes.metrics[0] if outcomes.is_single else CONFIDENCE,
        method=wanted.method,
        curve=model.curve,
        inputs=model.inputs,
        thresholds=tuple(thresholds),
        weights_rule=weights_rule,
        min_tokens=min_tokens,
        num_rows=len(outcomes),
        settings=settings,
        fit={"accuracy": float(outcomes.correct.mean()), **crossfit.report(outcomes, wanted.method)},
        reference=_reference(model.of(outcomes.whole)),
    )
    return Fitted(calibration, tuple(unmet), tuple(_by_group(outcomes, doubts, thresholds)))


def _thresholds(
    outcomes: Outcomes, doubts: Numbers, design: Flags, wanted: Wanted
) -> tuple[list[Threshold], list[Unmet]]:
    """A threshold for each target, of all rows and of those of every group, or why there is none."""
    every = np.ones_like(design)
    parts = [(None, every), *((name, outcomes.of_group(name)) for name in outcomes.names_of_groups())]
    found, unmet = [], []
    for group, rows in parts:
        for target in _targets(wanted, group):
            part = doubts[rows], ~outcomes.correct[rows], design[rows]
            result = _certified(target, *part, wanted.delta, outcomes.is_single)
            if isinstance(result, Refused):
                unmet.append(Unmet(target, result.reason, result.rows_needed, int(rows.sum())))
            else:
                found.append(_threshold(target, result, wanted.delta, outcomes.is_single))
    return found, unmet


def _targets(wanted: Wanted, group: str | None) -> Iterator[Target]:
    for share in wanted.target_errors:
        yield Target(target_error=share, group=group)
    for share in wanted.target_coverages:
        yield Target(target_coverage=share, group=group)


def _certified(
    target: Target, doubts: Numbers, wrong: Flags, design: Flags, delta: float, is_single: bool
) -> Certified | Refused:
    if target.target_error is not None:
        part = doubts, wrong, design, target.target_error, delta
        return certify_error(*part) or why_no_error(*part)
    assert target.target_coverage is not None
    # How many are answered needs no candidates, but rows to which the score was not fitted.
    free = np.ones_like(design) if is_single else ~design
    found = certify_coverage(doubts[free], wrong[free], target.target_coverage, delta)
    return found or why_no_coverage(int(free.sum()), target.target_coverage, delta)


def _threshold(target: Target, found: Certified, delta: float, is_single: bool) -> Threshold:
    return Threshold(
        **target.model_dump(),
        threshold=found.threshold if is_single else -found.threshold,
        delta=delta,
        coverage=found.num_answered / found.num_rows,
        error=found.num_wrong / found.num_answered,
        num_rows=found.num_rows,
    )


def _by_group(
    outcomes: Outcomes, doubts: Numbers, thresholds: Sequence[Threshold]
) -> Iterator[dict[str, Any]]:
    """Coverage and error of every group under each threshold that is for all, with exact intervals."""
    sign = 1 if outcomes.is_single else -1
    for each in thresholds:
        for name in outcomes.names_of_groups() if each.group is None else ():
            rows = outcomes.of_group(name)
            answered = rows & (doubts <= sign * each.threshold)
            num_answered, num_wrong = int(answered.sum()), int((answered & ~outcomes.correct).sum())
            yield {
                "target": each.asks.model_dump(exclude_none=True),
                "group": name,
                "n": int(rows.sum()),
                "answered": num_answered,
                "coverage": num_answered / int(rows.sum()),
                "error": num_wrong / num_answered if num_answered else None,
                "error_interval": share_interval(num_wrong, num_answered) if num_answered else None,
            }


def _reference(confidences: Numbers) -> Reference:
    """The distribution of confidences, at no more than `MOST_LEVELS` of its values."""
    values, counts = np.unique(confidences, return_counts=True)
    shares = counts.cumsum() / len(confidences)
    kept = np.unique(np.linspace(0, len(values) - 1, min(MOST_LEVELS, len(values))).round().astype(int))
    return Reference(values=tuple(values[kept].tolist()), shares=tuple(shares[kept].tolist()))
