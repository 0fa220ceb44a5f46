"""Two models side by side: how often each withholds and routes, how far its members differ, and how fast it is.

In: a look at each. Out: the comparison as data, and as lines for a terminal.
"""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from softspec.app.compare.looks import INFORMATION, TIMES, Histogram, Look
from softspec.app.compare.statistics import ChiSquare, Interval, difference, same_distribution, share

ACTIONS = {"abstain": "withheld", "route": "routed"}
"""Decision -> what is said of a request on which it was taken."""
_BAR = 20
_WIDTH = 28


@dataclass(frozen=True)
class Comparison:
    """Both looks by name, the first model first; `seconds` between which they were taken, None since the start."""

    one: tuple[str, Look]
    other: tuple[str, Look]
    seconds: float | None = None

    def shares(self, action: str) -> tuple[Interval, Interval] | None:
        """How often each took this action; None where one was asked nothing."""
        looks = self.one[1], self.other[1]
        if not all(look.num_requests for look in looks):
            return None
        first, second = (share(look.decisions.get(action, 0), look.num_requests) for look in looks)
        return first, second

    def histograms(self, name: str) -> tuple[Histogram | None, Histogram | None]:
        """The histogram of each, as far as it has one."""
        return self.one[1].histograms.get(name), self.other[1].histograms.get(name)

    @property
    def information(self) -> ChiSquare | None:
        """Whether the mutual information is spread differently; None where there is too little to say."""
        first, second = self.histograms(INFORMATION)
        return same_distribution(first.counts, second.counts) if first and second else None

    def document(self) -> dict[str, Any]:
        """All of it as JSON has it; differences are the second model's less the first one's."""
        spread = self.information
        return {
            "seconds": self.seconds,
            "models": {name: _told(look) for name, look in (self.one, self.other)},
            "differences": {
                action: {**asdict(apart := difference(*found)), "more_than_chance": apart.is_more_than_chance}
                for action in ACTIONS
                if (found := self.shares(action))
            },
            "mutual_information": None
            if spread is None
            else {**asdict(spread), "more_than_chance": spread.is_more_than_chance},
        }

    def lines(self) -> Iterator[str]:
        """The same for a terminal."""
        (name, look), (other_name, other_look) = self.one, self.other
        yield _row("", name, other_name)
        yield _row("requests", f"{look.num_requests:g}", f"{other_look.num_requests:g}")
        for action, words in ACTIONS.items():
            if (found := self.shares(action)) is not None:
                yield _row(words, *map(_percent, found))
        for what, metric, unit in (
            ("mutual information", INFORMATION, "nats"),
            *((what, metric, "s") for what, metric in TIMES.items()),
        ):
            if any(histograms := self.histograms(metric)):
                yield _row(what, *(_mean(each, unit) for each in histograms))
        yield ""
        yield from self._bars()
        yield from self._verdicts()

    def _bars(self) -> Iterator[str]:
        first, second = self.histograms(INFORMATION)
        if not (first and second and first.count and second.count):
            return
        yield "choices by mutual information, nats"
        for number, bound in enumerate(first.bounds):
            shares = [each.counts[number] / each.count for each in (first, second)]
            above = first.bounds[number - 1] if number else 0
            what = f"above {above:g}" if math.isinf(bound) else f"{above:g} to {bound:g}"
            yield _row(what, *(f"{'#' * round(part * _BAR):<{_BAR}} {part:.1%}" for part in shares))
        yield ""

    def _verdicts(self) -> Iterator[str]:
        (name, look), (other_name, other_look) = self.one, self.other
        for each, its in ((name, look), (other_name, other_look)):
            if not its.num_requests:
                yield f"{each} answered no request{'' if self.seconds is None else ' meanwhile'}: nothing to compare"
        for action, words in ACTIONS.items():
            if (found := self.shares(action)) is not None:
                apart = difference(*found)
                yield (
                    f"{words}: {other_name} {100 * apart.value:+.1f} points ({100 * apart.low:+.1f} to "
                    f"{100 * apart.high:+.1f}), {_verdict(apart.is_more_than_chance)}"
                )
        if (spread := self.information) is not None:
            yield (
                f"mutual information: chi-square {spread.statistic:.1f} on {spread.degrees} degree(s) of freedom, "
                f"p {spread.p:.2g}, {_verdict(spread.is_more_than_chance)}"
            )
        elif look.num_requests and other_look.num_requests:
            yield "mutual information: too few choices to say whether it is spread differently"


def _told(look: Look) -> dict[str, Any]:
    def told(histogram: Histogram) -> dict[str, Any]:
        bounds = [None if math.isinf(bound) else bound for bound in histogram.bounds]
        return {
            "count": histogram.count,
            "mean": histogram.mean,
            "bounds": bounds,
            "counts": histogram.counts,
        }

    shares = {
        action: asdict(share(look.decisions.get(action, 0), look.num_requests))
        for action in ACTIONS
        if look.num_requests
    }
    return {
        "requests": look.num_requests,
        "decisions": look.decisions,
        "shares": shares,
        "histograms": {name: told(each) for name, each in look.histograms.items()},
    }


def _row(what: str, *cells: str) -> str:
    return f"{what:<{_BAR}}{''.join(f'{cell:<{_WIDTH - 1}} ' for cell in cells)}".rstrip()


def _percent(found: Interval) -> str:
    return f"{found.value:.1%} ({100 * found.low:.1f} to {100 * found.high:.1f})"


def _mean(histogram: Histogram | None, unit: str) -> str:
    if histogram is None or histogram.mean is None:
        return "-"
    return f"{histogram.mean:.4g} {unit} (mean of {histogram.count:g})"


def _verdict(is_more_than_chance: bool) -> str:
    return "more than chance" if is_more_than_chance else "no more than chance"
