"""From scores files to a table: every model beside the ensemble, with `softspec evaluate`'s metrics, and its cost.

In: what was scored for each seed. Out: a document for JSON, and its table. Runs no model.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from softspec.app.baselines.run import OfSeed, Plan
from softspec.app.baselines.variants import ENSEMBLE
from softspec.evaluation.bootstrap import Statistic, described, resampling_of, sample
from softspec.evaluation.columns import Columns, read_columns
from softspec.evaluation.judge import Asked, judge
from softspec.evaluation.records import read_header, read_records
from softspec.maths.scoring import aurc, prediction_rejection_ratio

Document = dict[str, Any]
SHOWN = {
    "choices": ("nll", "accuracy", "brier", "ece", "aurc_total", "prr_total"),
    "generation": ("nll", "normalised_match", "aurc_surprise", "prr_surprise"),
}
"""Form of the rows -> the metrics that the table has."""
RANKINGS = {
    "aurc": (aurc, "mean error rate of the i most certain rows over all i"),
    "prr": (
        prediction_rejection_ratio,
        "share of the way from a random (0) to the best possible (1) ranking",
    ),
}


def compared(plan: Plan, seeds: Sequence[OfSeed], asked: Asked) -> Document:
    """All metrics of all models: for each seed as `softspec evaluate` gives them, and means over the seeds."""
    found = {str(each.seed): _of_seed(each, asked) for each in seeds}
    names = list(dict.fromkeys(model.name for each in seeds for model in each.models))
    shown = SHOWN[plan.data.survey.form]
    return {
        "data": {
            "name": plan.data.path.name,
            "digest": plan.data.survey.digest,
            "rows": plan.data.survey.num_rows,
        },
        "num_members": plan.config.num_members,
        "noise": {"lora_dropout": plan.noise.rate, "samples": plan.noise.samples},
        "seeds": found,
        "summary": {name: _summary(name, list(found.values()), shown) for name in names},
        "polygraph": _rankings([each.get("polygraph", {}) for each in found.values()]),
    }


def table(document: Document) -> str:
    """The table: means over the seeds, with the smallest and largest where there are several."""
    summary = document["summary"]
    shown = list(next(iter(summary.values()))["metrics"])
    head = ["", *shown, "nll - ensemble's", "adapter-steps", "weights", "seconds", "passes"]
    rows = [head, *(_line(name, of_model, shown) for name, of_model in summary.items())]
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    lines = [
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    return "\n".join([*lines, *_remarks(document)])


def _of_seed(each: OfSeed, asked: Asked) -> Document:
    others = {model.name: model.scores for model in each.models if model.name != ENSEMBLE}
    document = judge(each.scores_of(ENSEMBLE), others, asked)
    for model in each.models:
        place = document if model.name == ENSEMBLE else document["baselines"][model.name]
        place |= {"scores": str(model.scores), "cost": model.cost.as_json()}
        place |= {"note": model.note} if model.note else {}
    if each.polygraph:
        document["polygraph"] = polygraph_metrics(each.scores_of("single"), each.polygraph, asked)
    return document | {"left_out": each.left_out}


def polygraph_metrics(scores: Path, found: Mapping[str, Sequence[float]], asked: Asked) -> Document:
    """Whether lm-polygraph's scores rank the single adapter's wrong answers behind its right ones.

    Args:
        scores: those of the single adapter, which say which of its answers are right.
        found: estimator -> its score of each row, higher is less certain.
    """
    columns = read_columns(read_header(scores), read_records(scores), asked.length_normalise)
    resampling = resampling_of(columns, asked.draws, asked.seed)
    statistics = {
        f"{ranking}_{name}": _ranking(columns, ranking, name, values)
        for name, values in found.items()
        for ranking in RANKINGS
    }
    return {name: described(each, resampling) for name, each in sample(statistics, resampling).items()}


def _ranking(columns: Columns, ranking: str, name: str, values: Sequence[float]) -> Statistic:
    errors, ranked = 1 - columns.values["normalised_match"], torch.tensor(values, dtype=torch.float64)
    evaluate, about = RANKINGS[ranking]
    return Statistic(
        f"{about}; ranked by lm-polygraph's {name}; ties as in random order",
        lambda weights: evaluate(ranked, errors, weights=weights),
        len(errors),
        "all answers are right or all are wrong",
    )


def _summary(name: str, seeds: Sequence[Document], shown: Sequence[str]) -> Document:
    """A model's numbers over the seeds that have it."""
    own = [each if name == ENSEMBLE else each["baselines"].get(name) for each in seeds]
    there = [each for each in own if each is not None]
    costs = [each["cost"] for each in there]
    return {
        "metrics": {metric: _spread([each["metrics"].get(metric) for each in there]) for metric in shown},
        "nll_difference": None if name == ENSEMBLE else _spread([_minus(each) for each in there]),
        "cost": {key: sum(cost[key] for cost in costs) / len(costs) for key in costs[0]},
    }


def _rankings(seeds: Sequence[Document]) -> Document:
    """Ranking and estimator -> its spread over the seeds."""
    return {name: _spread([each[name] for each in seeds if name in each]) for name in seeds[0]}


def _minus(baseline: Document) -> Document | None:
    """How much higher a baseline's NLL is than the ensemble's, with its paired interval."""
    found = baseline["difference"].get("nll")
    if found is None or found["value"] is None:
        return None
    bounds = {"low": found["high"], "high": found["low"]}
    return {"value": -found["value"]} | {
        key: bound if bound is None else -bound for key, bound in bounds.items()
    }


def _spread(values: Sequence[Document | None]) -> Document | None:
    """The mean over seeds, with the smallest and largest; of one seed the value with its interval."""
    known = [value for value in values if value is not None and value["value"] is not None]
    if not known:
        return None
    if len(known) == 1:
        return {key: known[0][key] for key in ("value", "low", "high")} | {"seeds": 1}
    of_seeds = [value["value"] for value in known]
    return {
        "value": sum(of_seeds) / len(of_seeds),
        "low": min(of_seeds),
        "high": max(of_seeds),
        "seeds": len(known),
    }


def _line(name: str, of_model: Document, shown: Sequence[str]) -> list[str]:
    cost, metrics = of_model["cost"], of_model["metrics"]
    cells = [_cell(metrics[metric], with_range=False) for metric in shown]
    difference = (
        "" if of_model["nll_difference"] is None else _cell(of_model["nll_difference"], with_range=True)
    )
    return [
        name,
        *cells,
        difference,
        f"{cost['adapter_steps']:,.0f}",
        f"{cost['parameters']:,.0f}",
        f"{cost['seconds']:,.0f}",
        f"{cost['passes']:,.0f}",
    ]


def _cell(found: Document | None, with_range: bool) -> str:
    if found is None or found["value"] is None:
        return "-"
    if not with_range or found["low"] is None:
        return f"{found['value']:.3f}"
    return f"{found['value']:+.3f} ({found['low']:+.3f} to {found['high']:+.3f})"


def _remarks(document: Document) -> list[str]:
    """What the columns are, lm-polygraph's rankings, and what was left out and why."""
    seeds, rankings = document["seeds"], document["polygraph"]
    ranges = "smallest and largest of the seeds" if len(seeds) > 1 else "95 % of paired resamplings"
    lines = ["", f"{document['data']['rows']:,} rows, seeds {', '.join(seeds)}; in brackets: {ranges}"]
    if rankings:
        lines += [
            "",
            f"{'how lm-polygraph ranks the answers of single':44}"
            + "".join(f"{name:>8}" for name in RANKINGS),
        ]
    for name in dict.fromkeys(each.partition("_")[2] for each in rankings):
        cells = (_cell(rankings[f"{ranking}_{name}"], with_range=False) for ranking in RANKINGS)
        lines.append(f"{name:44}" + "".join(f"{cell:>8}" for cell in cells))
    left_out = {name: why for of_seed in seeds.values() for name, why in of_seed["left_out"].items()}
    return lines + [f"left out: {name}, {why}" for name, why in left_out.items()]
