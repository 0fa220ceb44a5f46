"""Curves as SVG to be put into a page: text stays text, nothing is loaded, colours that everybody can tell apart.

In: numbers, and words of ours; never words from data, which belong into the page around a plot. Out: `Plot`s.
"""

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from softspec.evaluation.curves import Bin

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#b8860b", "#000000", "#7f7f7f")
"""Okabe and Ito's, told apart without red and green and in print; yellow is darkened for white paper."""
DASHES = ("solid", (0, (5, 2)), (0, (1, 1.2)), (0, (6, 2, 1, 2)))
SVG_DASHES = ("", "5 2", "1 2", "6 2 1 2")
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "softspec",
    "text.parse_math": False,
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e0e0e0",
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.4,
    "figure.figsize": (4.7, 2.9),
    "figure.constrained_layout.use": True,
}
NOT_NEEDED = re.compile(r'<metadata>.*?</metadata>| xmlns(?::\w+)?="[^"]*"', re.DOTALL)
NAMES = re.compile(r'(\bid="|url\(#|href="#)')


@dataclass(frozen=True)
class Series:
    """One line of a plot: its name in the legend, x and y (P,), and the band around it if there is one.

    `place` chooses colour and dashes, so that one thing looks the same in all plots.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    place: int
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None
    is_dotted: bool = False


@dataclass(frozen=True)
class LegendEntry:
    """A line of the legend; the page sets it, as its name may come from data."""

    name: str
    colour: str
    dashes: str
    is_dotted: bool


@dataclass(frozen=True)
class Plot:
    """An inline `<svg>` element, what it shows in words, and its legend."""

    svg: str
    alt: str
    legend: list[LegendEntry] = field(default_factory=list)


def line_plot(
    series: Sequence[Series],
    alt: str,
    x: str,
    y: str,
    *,
    y_range: tuple[float, float] | None = None,
    is_log: bool = False,
) -> Plot:
    """Lines, with bands where they have some; a legend where there are several."""
    with _drawing(alt) as (axes, found):
        for each in series:
            _draw(axes, each)
        axes.set(xlabel=x, ylabel=y)
        if is_log:
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_formatter("")
        if y_range is not None:
            axes.set_ylim(*y_range)
    entries = [
        LegendEntry(
            each.name, _colour(each.place), SVG_DASHES[each.place // len(COLOURS) % 4], each.is_dotted
        )
        for each in series
    ]
    return Plot(found[0], alt, entries if len(series) > 1 else [])


def histogram(
    values: Sequence[float], weights: Sequence[float], edges: Sequence[float], alt: str, x: str
) -> Plot:
    """Shares of rows by value."""
    heights, _ = np.histogram(values, bins=list(edges), weights=weights)
    shares = heights / max(heights.sum(), 1e-300)
    with _drawing(alt, (3.2, 2.2)) as (axes, found):
        axes.set_axisbelow(True)
        axes.bar(edges[:-1], shares, width=np.diff(edges), align="edge", color=COLOURS[0], edgecolor="white")
        axes.set(xlabel=x, ylabel="share of rows", xlim=(edges[0], edges[-1]), ylim=(0, 1))
    return Plot(found[0], alt)


def reliability_plot(bins: Sequence[Bin], alt: str) -> Plot:
    """Accuracy of each bin with its interval, against the diagonal."""
    confidence, accuracy, low, high = np.array(
        [(each.confidence, each.accuracy, each.low, each.high) for each in bins]
    ).T
    errors = np.stack([accuracy - low, high - accuracy]).clip(0)
    with _drawing(alt, (3.6, 3.4)) as (axes, found):
        axes.plot([0, 1], [0, 1], color="#999999", linewidth=0.8)
        axes.errorbar(confidence, accuracy, errors, fmt="o", color=COLOURS[0], markersize=4, elinewidth=1.2)
        axes.set(xlabel="confidence", ylabel="accuracy", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    return Plot(found[0], alt)


def _draw(axes: Axes, each: Series) -> None:
    colour = _colour(each.place)
    if each.low is not None and each.high is not None:
        axes.fill_between(each.x, each.low, each.high, color=colour, alpha=0.18, linewidth=0)
    if each.is_dotted:
        axes.plot(each.x, each.y, color=colour, marker="o", markersize=3.5, linewidth=0.8)
    else:
        marker = "o" if len(each.x) == 1 else ""
        dashes = DASHES[each.place // len(COLOURS) % len(DASHES)]
        axes.plot(each.x, each.y, color=colour, linestyle=dashes, marker=marker, markersize=3.5)


def _colour(place: int) -> str:
    return COLOURS[place % len(COLOURS)]


@contextmanager
def _drawing(alt: str, size: tuple[float, float] | None = None) -> Iterator[tuple[Axes, list[str]]]:
    """Axes to draw on; the list has the SVG afterwards."""
    found: list[str] = []
    with rc_context(STYLE):
        figure = Figure(figsize=size)
        yield figure.add_subplot(), found
        written = io.StringIO()
        figure.savefig(written, format="svg", metadata={"Date": None})
    svg = NOT_NEEDED.sub("", written.getvalue())
    svg = svg[svg.index("<svg") :]
    # Names must not clash with those of the other plots on the page.
    own = "p" + re.sub(r"\W+", "-", alt.lower())
    found.append(NAMES.sub(rf"\g<1>{own}-", svg).replace("<svg", '<svg role="img"', 1))
