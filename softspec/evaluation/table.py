"""The document of an evaluation as a table for a terminal.

In: what `judge` gives. Out: lines. Computes nothing.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from softspec.evaluation.judge import Document

WIDTH = 30


def table(document: Document) -> str:
    """Every metric with its interval and n, then what members answer for, then the differences from baselines."""
    model, data, resampled = document["model"], document["data"], document["resampled"]
    members = "1 member" if model["members"] == 1 else f"{model['members']} members"
    unit = resampled["unit"]
    lines = [
        f"{model['name']} ({model['kind']}, {members}) on {data['rows']:,} rows of {data['name']}",
        f"95 % intervals: percentiles of {resampled['draws']:,} resamplings of {resampled['count']:,} {unit}s; "
        "nats where nothing is said",
        "",
        f"{'':{WIDTH}}{'value':>9}{'low':>9}{'high':>9}{'n':>9}",
        *_metrics(document["metrics"]),
        *_kinds(document["by_kind"]),
        *_responsibilities(document.get("responsibilities")),
        *_baselines(document["baselines"]),
    ]
    return "\n".join(lines)


def _metrics(metrics: Mapping[str, Any]) -> Iterator[str]:
    for name, metric in metrics.items():
        notes = [f"floor {metric['floor']:.3f}"] if "floor" in metric else []
        notes += (
            [f"p = {metric['p_value']:.3f}, null {metric['null_mean']:.3f}"] if "p_value" in metric else []
        )
        notes += (
            [f"{metric['resampled']['count']} {metric['resampled']['unit']}s"]
            if "resampled" in metric
            else []
        )
        notes += [metric["reason"]] if "reason" in metric else []
        yield _line(name, metric) + "".join(f"  {note}" for note in notes)


def _kinds(kinds: Mapping[str, Any]) -> Iterator[str]:
    if len(kinds) < 2:
        return
    names = list(dict.fromkeys(name for metrics in kinds.values() for name in metrics))
    yield ""
    yield f"{'kind':{WIDTH}}" + "".join(f"{name:>12}" for name in names) + f"{'n':>9}"
    for kind, metrics in kinds.items():
        cells = "".join(
            f"{_number(metrics[name]['value'] if name in metrics else None):>12}" for name in names
        )
        rows = max((metric["n"] for metric in metrics.values()), default=0)
        yield f"{kind:{WIDTH}}{cells}{rows:9,}"


def _responsibilities(matrix: Mapping[str, Any] | None) -> Iterator[str]:
    if matrix is None:
        return
    yield ""
    yield (
        f"{'responsibility by source':{WIDTH}}"
        + "".join(f"{k:>9}" for k in range(len(matrix["load"])))
        + f"{'n':>9}"
    )
    for source, shares, count in zip(matrix["sources"], matrix["rows"], matrix["answers"], strict=True):
        yield f"{source[: WIDTH - 1]:{WIDTH}}" + "".join(f"{share:9.3f}" for share in shares) + f"{count:9,}"
    yield f"{'all':{WIDTH}}" + "".join(f"{share:9.3f}" for share in matrix["load"])


def _baselines(baselines: Mapping[str, Any]) -> Iterator[str]:
    for name, baseline in baselines.items():
        yield ""
        title = f"minus {name}"
        yield f"{title[: WIDTH - 1]:{WIDTH}}{'diff.':>9}{'low':>9}{'high':>9}{'n':>9}{'theirs':>9}"
        for metric, difference in baseline["difference"].items():
            theirs = _number(baseline["metrics"][metric]["value"])
            yield f"{_line(metric, difference)}{theirs:>9}"


def _line(name: str, metric: Mapping[str, Any]) -> str:
    cells = "".join(f"{_number(metric[key]):>9}" for key in ("value", "low", "high"))
    return f"{name:{WIDTH}}{cells}{metric['n']:9,}"


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    shown = f"{value:.3f}" if abs(value) < 10_000 else f"{value:.1e}"
    return shown if float(shown) else "0.000"
