"""What a page shows, from files to plots and tables: one function for each part.

In: the log of a training, a scores file with what it is compared with, a manifest. Out: views, records that the page
sets without computing. Metrics are those of `softspec.evaluation`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from softspec.app.report.contested import ContestedRow, contested_rows, uncertainty_name
from softspec.app.report.meanings import meaning
from softspec.app.report.plots import COLOURS, Plot, Series, histogram, line_plot, reliability_plot
from softspec.app.report.training import TrainingLog
from softspec.evaluation.bootstrap import Resampling, resampling_of
from softspec.evaluation.columns import Columns, read_columns
from softspec.evaluation.curves import Bin, RiskCoverage, reliability, risk_coverage
from softspec.evaluation.judge import Asked, Document, judge
from softspec.evaluation.records import Header, read_header, read_records

NUM_EDGES = 21
HEADLINE = (
    "nll",
    "nll_per_token",
    "accuracy",
    "exact_match",
    "normalised_match",
    "brier",
    "kl_to_votes",
    "ece",
    "member_nll",
    "total",
    "aleatoric",
    "epistemic",
    "mutual_information",
    "prr_total",
    "prr_epistemic",
    "prr_mutual_information",
    "auroc_conflict_epistemic",
    "auroc_ood_total",
    "spearman_total",
    "spearman_epistemic",
    "soft_source_mi",
    "next_gain_1",
)
"""Metrics that are shown at once; the others are folded."""


@dataclass(frozen=True)
class TrainingView:
    """Curves of a training, by the section whose words explain them."""

    plots: list[tuple[str, str, Plot]]
    num_steps: int
    stretch: int
    seconds: float
    reseeded: Sequence[tuple[int, int, int]]


@dataclass(frozen=True)
class MetricLine:
    """A metric as a row of a table; `theirs` is the baseline's value where it is a difference."""

    name: str
    value: float | None
    low: float | None
    high: float | None
    n: int
    notes: list[str]
    meaning: str | None
    estimator: str
    theirs: float | None = None


@dataclass(frozen=True)
class ScoresView:
    """Everything about one scores file; plots and tables are None or empty where they do not apply."""

    header: Header
    form: str
    resampled: Mapping[str, Any]
    headline: list[MetricLine]
    others: list[MetricLine]
    by_kind: Mapping[str, Any]
    baselines: Mapping[str, list[MetricLine]]
    reliability: Plot | None
    bins: list[Bin]
    risk: Plot | None
    histograms: list[tuple[str, int, float, Plot]]
    responsibilities: Mapping[str, Any] | None
    divergence: list[list[float]] | None
    contested: list[ContestedRow]
    has_prompts: bool
    document: Document


def training_view(log: TrainingLog) -> TrainingView:
    """The curves that this training has."""
    plots = [("nll", "Negative log-likelihood", _nll(log))]
    for name, section, title, y in (
        ("load", "load", "Load", "mean responsibility"),
        ("routing_perplexity", "routing", "Routing perplexity", "members per example"),
        ("gradient_norms", "gradients", "Gradient norms", "norm before clipping"),
        ("accuracies", "accuracies", "Preference accuracy", "share of preferences"),
    ):
        if name in log.facts:
            plots.append((section, title, _of_members(log, name, title, y)))
    return TrainingView(plots, log.num_steps, log.stretch, log.seconds, log.reseeded)


def scores_view(
    scores: Path, baselines: Mapping[str, Path], data: Path | None, asked: Asked, title: str
) -> ScoresView:
    """Judge a scores file, and draw what stands behind its metrics."""
    document = judge(scores, baselines, asked)
    header = read_header(scores)
    columns = read_columns(header, read_records(scores), asked.length_normalise)
    resampling = resampling_of(columns, asked.draws, asked.seed)
    bins = reliability(columns, resampling)
    curves = _curves(scores, columns, baselines, resampling, asked)
    lines = [_line(name, metric) for name, metric in document["metrics"].items()]
    return ScoresView(
        header=header,
        form=columns.form,
        resampled=document["resampled"],
        headline=[line for name in HEADLINE for line in lines if line.name == name],
        others=[line for line in lines if line.name not in HEADLINE],
        by_kind=document["by_kind"],
        baselines={name: _against(other) for name, other in document["baselines"].items()},
        reliability=_reliability(bins, title),
        bins=bins,
        risk=_risk(curves, title),
        histograms=_histograms(columns, title),
        responsibilities=document.get("responsibilities"),
        divergence=document.get("divergence"),
        contested=contested_rows(scores, header, columns, data),
        has_prompts=data is not None,
        document={
            **document,
            "reliability": [asdict(each) for each in bins],
            "risk_coverage": {name: asdict(curve) for name, curve in curves},
        },
    )


def _nll(log: TrainingLog) -> Plot:
    series = [
        Series("mixture", log.steps, log.facts["mixture_nll"].tolist(), 0),
        Series("members, mean", log.steps, log.facts["member_nll"].tolist(), 1),
    ]
    for name, words, place in (("mixture_nll", "mixture, held out", 2), ("base_nll", "base, held out", 7)):
        steps, values = log.held_out_curve(name)
        if steps:
            series.append(Series(words, steps, values, place, is_dotted=True))
    return line_plot(series, "NLL over steps, by the mixture and by its members", "step", "nats per example")


def _of_members(log: TrainingLog, name: str, title: str, y: str) -> Plot:
    values = log.facts[name]
    alt = f"{title} over steps"
    if values.ndim == 1:
        num_members = log.facts["load"].shape[-1]
        return line_plot(
            [Series(title, log.steps, values.tolist(), 0)], alt, "step", y, y_range=(0.9, num_members * 1.05)
        )
    series = [
        Series(f"member {member}", log.steps, own.tolist(), member) for member, own in enumerate(values.T)
    ]
    is_log = name == "gradient_norms" and bool((values > 0).all())
    y_range = None if name == "gradient_norms" else (-0.02, 1.02)
    return line_plot(series, alt, "step", y, y_range=y_range, is_log=is_log)


def _line(name: str, metric: Mapping[str, Any], theirs: float | None = None) -> MetricLine:
    notes = [f"floor {metric['floor']:.3f}"] if "floor" in metric else []
    notes += [f"p = {metric['p_value']:.3f}, null {metric['null_mean']:.3f}"] if "p_value" in metric else []
    notes += [metric["reason"]] if "reason" in metric else []
    return MetricLine(
        name=name,
        **{key: metric[key] for key in ("value", "low", "high", "n")},
        notes=notes,
        meaning=meaning(name),
        estimator=metric["estimator"],
        theirs=theirs,
    )


def _against(other: Mapping[str, Any]) -> list[MetricLine]:
    """Differences from a baseline, of the metrics that are shown at once."""
    return [
        _line(name, other["difference"][name], other["metrics"][name]["value"])
        for name in HEADLINE
        if name in other["difference"]
    ]


Curves = list[tuple[str, RiskCoverage]]


def _curves(
    scores: Path, columns: Columns, baselines: Mapping[str, Path], resampling: Resampling, asked: Asked
) -> Curves:
    """Risk by coverage: of the model by what it could abstain on, of each baseline by its total uncertainty."""
    names = (
        ["total"] if len(columns.log_weights) == 1 else ["total", uncertainty_name(columns) or "epistemic"]
    )
    found = [(f"ranked by {name}", risk_coverage(columns, name, resampling)) for name in names]
    for name, path in baselines.items():
        header = read_header(path)
        other = read_columns(header, read_records(path), asked.length_normalise)
        its = resampling_of(other, asked.draws, asked.seed)
        found.append((f"{name}, ranked by total", risk_coverage(other, "total", its)))
    return [(name, curve) for name, curve in found if curve is not None]


def _risk(curves: Curves, title: str) -> Plot | None:
    if not curves:
        return None
    series = [
        Series(
            name,
            curve.coverage,
            curve.risk,
            number * (len(COLOURS) + 1),  # another colour and other dashes, as curves may cover each other
            curve.low if number == 0 else None,
            curve.high if number == 0 else None,
        )
        for number, (name, curve) in enumerate(curves)
    ]
    alt = f"{title}: error rate by share answered"
    return line_plot(series, alt, "share answered, the surest first", "error rate")


def _reliability(bins: Sequence[Bin], title: str) -> Plot | None:
    if not bins:
        return None
    return reliability_plot(bins, f"{title}: accuracy by confidence")


def _histograms(columns: Columns, title: str) -> list[tuple[str, int, float, Plot]]:
    """For each kind its name, its rows, the mean, and how they are spread; all kinds on one axis."""
    name = uncertainty_name(columns)
    if name is None or len(columns.log_weights) == 1:
        return []
    values = columns.values[name]
    most = float(values.nan_to_num(0).max())
    edges = torch.linspace(0, max(most * 1.001, 1e-3), NUM_EDGES, dtype=torch.float64).tolist()
    kinds = [(kind, columns.rows_of([kind])) for kind in columns.kinds]
    if bool((columns.kind < 0).any()):
        kinds.append(("no kind" if kinds else "all rows", columns.kind < 0))
    found = []
    for number, (kind, own) in enumerate(kinds):
        rows = own & ~values.isnan()
        if not rows.any():
            continue
        weights = columns.weight[rows]
        mean = float(weights @ values[rows] / weights.sum())
        plot = histogram(
            values[rows].tolist(),
            weights.tolist(),
            edges,
            f"{title}: spread of mutual information, kind number {number + 1}",
            "mutual information, nats",
        )
        found.append((kind, int(rows.sum()), mean, plot))
    return found
