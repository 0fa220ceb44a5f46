"""A study's table in Markdown: what `softspec baselines --json` wrote, one line for each model.

In: the document and the metrics to show. Out: text. A cell has the mean over the seeds and, in brackets, the smallest
and the largest; the last column says in how many seeds the paired interval of the NLL's difference excludes zero.
"""

from collections.abc import Mapping, Sequence
from typing import Any

Document = Mapping[str, Any]
TITLES = {
    "ensemble": "**alpha 0.8**",
    "base": "base, zero-shot",
    "single": "one adapter",
    "wide": "one adapter, K x rank and steps",
    "independent": "alpha 0 (independent)",
    "dropout": "MC dropout",
    "laplace": "last-layer Laplace",
}
SCALED = ("single", "independent", "ensemble")
"""The models that are shown with a temperature too."""


def markdown(table: Document, shown: Sequence[str]) -> str:
    """All models of a table; at its end those that were scaled by a temperature, as far as that is shown."""
    seeds = list(table["seeds"].values())
    shown_names = [name for name in table["summary"] if "+" not in name or name.partition("+")[0] in SCALED]
    names = sorted(shown_names, key=lambda name: ("+" in name, _order(name)))
    head = ["", *shown, "NLL above alpha 0.8", "adapter-steps", "seconds"]
    lines = [head, ["---"] * len(head), *(_line(name, seeds, shown) for name in names)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _order(name: str) -> float:
    """The base and one adapter first, then ensembles by their order."""
    model = name.partition("+")[0]
    before = ["base", "single", "wide", "dropout", "laplace", "independent"]
    if model in before:
        return before.index(model)
    return 10 + (0.8 if model == "ensemble" else float(model.rpartition("-")[2]))


def _line(name: str, seeds: Sequence[Document], shown: Sequence[str]) -> list[str]:
    model, plus, rest = name.partition("+")
    title = TITLES.get(model) or f"alpha {model.rpartition('-')[2]}"
    there = [each for each in (_of(name, seed) for seed in seeds) if each is not None]
    cells = [_spread([each["metrics"].get(metric) for each in there]) for metric in shown]
    differences = [each["difference"].get("nll") for each in there if "difference" in each]
    apart = sum(each["low"] > 0 or each["high"] < 0 for each in differences)
    above = [-each["value"] for each in differences]
    beside = f"{_mean(above):+.3f}, apart in {apart} of {len(above)}" if above else ""
    costs = [each["cost"] for each in there]
    steps, seconds = (_mean([cost[key] for cost in costs]) for key in ("adapter_steps", "seconds"))
    return [f"{title}{plus and ', ' + rest}", *cells, beside, f"{steps:,.0f}", f"{seconds:,.0f}"]


def _of(name: str, seed: Document) -> Document | None:
    found: Document | None = seed if name == "ensemble" else seed["baselines"].get(name)
    return found


def _spread(found: Sequence[Document | None]) -> str:
    values = [each["value"] for each in found if each is not None and each["value"] is not None]
    return over_seeds(values) if values else "-"


def over_seeds(values: Sequence[float]) -> str:
    """The mean of a number over the seeds; in brackets the smallest and the largest, if they differ."""
    low, high = min(values), max(values)
    return f"{_mean(values):.3f}" + (f" ({low:.3f} to {high:.3f})" if low < high else "")


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
