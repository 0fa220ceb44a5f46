"""A diagnosis as a page of text: what was found, probe by probe, and what to do next.

In: `Findings` and the `Advice` on them. Out: lines for stdout. Computes nothing.
"""

import math
import textwrap
from collections.abc import Iterator

from softspec.maths.stability import CriticalAlpha, Estimate
from softspec.train.diagnosis.ambiguity import Ambiguity
from softspec.train.diagnosis.findings import Findings, Setting, SourceGains, Stability
from softspec.train.diagnosis.growth import Growth
from softspec.train.diagnosis.price import price_nats
from softspec.train.diagnosis.words import Advice

WIDTH = 100


def page(findings: Findings, advice: Advice) -> str:
    """The whole page."""
    parts = [_of_ambiguity(findings.ambiguity)] if findings.ambiguity else []
    parts += [_of_sources(findings.sources, findings.setting)] if findings.sources else []
    parts += [_of_stability(findings.stability, findings.setting)] if findings.stability else []
    parts += [_of_growth(findings.growth)] if findings.growth else []
    lines = [line for part in parts for line in (*part, "")]
    lines += [f"note: {note}" for note in findings.notes]
    lines += ["", f"verdict: {advice.verdict}", *textwrap.wrap(advice.text, WIDTH)]
    return "\n".join(lines).strip()


def _estimate(found: Estimate) -> str:
    return f"{found.value:.3f} ({found.low:.3f} to {found.high:.3f})"


def _critical(found: CriticalAlpha) -> str:
    return f"{_order(found.value)} ({_order(found.low)} to {_order(found.high)})"


def _order(alpha: float) -> str:
    return "none" if math.isinf(alpha) else f"{alpha:.2f}"


def _of_ambiguity(found: Ambiguity) -> Iterator[str]:
    yield f"ambiguity, nats per held-out row (95 % bootstrap over {found.gain.n} rows)"
    yield f"  one member alone        {_estimate(found.member_nll)}"
    yield f"  the mixture             {_estimate(found.mixture_nll)}"
    yield f"  gain of the mixture     {_estimate(found.gain)}"
    if found.cost and found.advantage:
        yield f"  cost to each member     {_estimate(found.cost)}"
        yield f"  gain - cost             {_estimate(found.advantage)}   above 0: better than one adapter"
    loads = " ".join(f"{100 * share:.0f}" for share in found.load)
    yield f"  load                    {loads} %, {found.routing_perplexity:.2f} members share a unit"


def _of_sources(found: SourceGains, setting: Setting) -> Iterator[str]:
    yield f"sources: nats that a row gains from an adapter of its own source, after {found.steps} steps"
    width = max(map(len, [*found.gains, "all"]))
    for name, gain in {**found.gains, "all": found.mean}.items():
        yield f"  {name:{width}}  {_estimate(gain)}   n {gain.n}"
    if found.left_out:
        yield f"  {found.left_out} rarer sources were left out"
    if setting.renyi_alpha:
        price = price_nats(setting.renyi_alpha, setting.num_members)
        yield f"price of routing a unit to one of {setting.num_members}: up to {price:.2f} nats"
    yield "what specialists gain over one adapter in the loss, nats per row; + pays, . cannot be told, - does not"
    sizes = sorted({rows for _, rows in found.advantages})
    yield "  rows together " + "".join(f"{rows:>10}" for rows in sizes)
    for order in sorted({order for order, _ in found.advantages}):
        cells = (found.advantages[order, rows] for rows in sizes)
        mark = "*" if order == setting.renyi_alpha else " "
        yield f"  alpha {order:<7g}{mark} " + "".join(f"{_signed(cell):>10}" for cell in cells)


def _signed(found: Estimate) -> str:
    mark = "+" if found.low > 0 else "-" if found.high < 0 else "."
    return f"{found.value:.3f} {mark}"


def _of_stability(found: Stability, setting: Setting) -> Iterator[str]:
    yield f"stability around one adapter (n {found.critical.n} units, cross-fitted; upper bounds)"
    yield f"  critical alpha          {_critical(found.critical)}   the run has {setting.renyi_alpha:g}"
    for rows, critical in found.by_rows.items():
        if rows != setting.rows_together:
            yield f"  {rows:>3} rows together       {_critical(critical)}"
    sign = "negative: members part" if found.lowest_curvature < 0 else "positive: none found that parts"
    yield f"  lowest curvature        {found.lowest_curvature:.3g}   {sign}"


def _of_growth(found: Growth) -> Iterator[str]:
    if not found.spreads:
        yield "growth: no log of routing in the ensemble"
        return
    yield "growth of the spread of members (log K minus the entropy of routing)"
    last, most = found.spreads[-1], math.log(found.num_members)
    yield f"  after {found.steps[-1]} steps{'':10}{last:.2g} of {most:.2f} nats"
    if found.rate:
        yield f"  rate per step           {_estimate(found.rate)}"
    if found.control:
        yield f"  members that are alone  {_estimate(found.control)}"
    if found.steps_to_go:
        yield f"  apart in about          {found.steps_to_go} more steps"
