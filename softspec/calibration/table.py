"""What was calibrated, as text and as JSON.

In: a fitted calibration. Out: lines for a terminal, and a document for scripts.
"""

from collections.abc import Iterator
from typing import Any

from softspec.artefact.calibration import Calibration, Threshold
from softspec.calibration.fit import Fitted, Unmet

_NAMES = {"ece": "calibration error (ECE)", "brier": "Brier score", "nll": "NLL, nats"}


def document(fitted: Fitted) -> dict[str, Any]:
    """Everything that was found, for `--json`."""
    return {
        "calibration": fitted.calibration.model_dump(mode="json"),
        "unmet": [
            {
                **each.target.model_dump(exclude_none=True),
                "reason": each.reason,
                "num_rows": each.num_rows,
                "rows_needed": each.rows_needed,
            }
            for each in fitted.unmet
        ],
        "by_group": list(fitted.by_group),
    }


def table(fitted: Fitted) -> str:
    """What matters of it, in lines."""
    return "\n".join([*_confidence(fitted.calibration), *_targets(fitted), *_groups(fitted)])


def _confidence(calibration: Calibration) -> Iterator[str]:
    fit = calibration.fit
    yield (
        f"{calibration.num_rows} {calibration.judged}, {fit['accuracy']:.1%} right; confidence by "
        f"{', '.join(calibration.metrics)} ({calibration.method}) from {calibration.curve[-1][1]:.3f} to "
        f"{calibration.curve[0][1]:.3f}"
    )
    if "reason" in fit:
        yield f"not cross-fitted: {fit['reason']}"
        return
    yield f"{'':26}{'the mixture itself':>26}{'calibrated':>26}   ({fit['estimator']})"
    for key, name in _NAMES.items():
        before, after = (_with_interval(fit[key][when]) for when in ("before", "after"))
        yield f"{name:26}{before:>26}{after:>26}"
    if len({height for _, height in calibration.curve}) == 1:
        yield f"{', '.join(calibration.metrics)} does not tell right answers from wrong ones here: try another --metric"


def _with_interval(scored: dict[str, float]) -> str:
    return f"{scored['value']:.3f} [{scored['low']:.3f}, {scored['high']:.3f}]"


def _targets(fitted: Fitted) -> Iterator[str]:
    metric = fitted.calibration.metric
    for each in fitted.calibration.thresholds:
        yield f"{each}: {_certified(each, metric)}"
    for unmet in fitted.unmet:
        yield f"{unmet.target}: no threshold certified: {unmet.reason}; {_needed(unmet)}"


def _certified(each: Threshold, metric: str) -> str:
    side = ">=" if metric == "confidence" else "<="
    wrong = "" if each.error is None else f", of which {each.error:.1%} were wrong"
    return (
        f"answer where {metric} {side} {each.threshold:.4g}; certified with probability {1 - each.delta:.0%} on "
        f"{each.num_rows} rows: {each.coverage:.1%} answered{wrong}"
    )


def _needed(unmet: Unmet) -> str:
    if unmet.rows_needed is None:
        return "more rows like these would not help"
    if unmet.rows_needed <= unmet.num_rows:
        return "it was near, so somewhat more rows may do"
    return f"about {unmet.rows_needed - unmet.num_rows:,} more rows would be needed"


def _groups(fitted: Fitted) -> Iterator[str]:
    if fitted.by_group:
        yield "by group, under the thresholds for all:"
    for row in fitted.by_group:
        target = ", ".join(f"{name} {share:g}" for name, share in row["target"].items())
        wrong = "nothing answered"
        if row["error"] is not None:
            low, high = row["error_interval"]
            wrong = f"{row['error']:.1%} of them wrong [{low:.1%}, {high:.1%}]"
        yield f"  {row['group']} ({target}): {row['coverage']:.1%} of {row['n']} answered, {wrong}"
