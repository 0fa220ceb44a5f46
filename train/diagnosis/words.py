"""What to do next, in words: the first rule that fits what was found.

In: `Findings`. Out: an `Advice`: a verdict by name, a paragraph, and the settings that it asks for. Computes nothing.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from softspec.train.diagnosis.findings import Findings
from softspec.train.diagnosis.price import price_nats
from softspec.train.loop.health import STARVED_SHARE


@dataclass(frozen=True)
class Advice:
    """The verdict, the paragraph about it, and settings to change; none where nothing is to be changed."""

    verdict: str
    text: str
    settings: dict[str, Any] = field(default_factory=dict)


def advise(findings: Findings) -> Advice:
    """What to do next."""
    for rule in RULES:
        advice = rule(findings)
        if advice:
            return advice
    return Advice(
        "unclear",
        "Nothing here says that members would part, and nothing that they could not. Give rows a 'source' or a "
        "'group', or more steps (--steps), and ask again.",
    )


def one_member(findings: Findings) -> Advice | None:
    """One adapter has nobody to part from, and independent members never compete."""
    setting = findings.setting
    if setting.num_members == 1:
        return Advice(
            "one_adapter", "There is one member, so nothing can be shared out. Set num_members to 2 or more."
        )
    if setting.renyi_alpha == 0 and not findings.sources:
        return Advice(
            "subcritical",
            "renyi_alpha is 0: members learn alone, each all of the data, and stay alike. Set it to 0.5 or more for "
            "specialists.",
            {"renyi_alpha": 0.8},
        )
    return None


def starved(findings: Findings) -> Advice | None:
    """A member has next to no unit."""
    setting, found = findings.setting, findings.ambiguity
    if not found:
        return None
    starving = [k for k, share in enumerate(found.load) if share < STARVED_SHARE / setting.num_members]
    if not starving:
        return None
    names = ", ".join(map(str, starving))
    return Advice(
        "starved",
        f"Members {names} explain next to nothing of the held-out rows (less than {STARVED_SHARE:g} of a fair share): "
        "others took their units early and they never caught up. Train again with reseed_starved: true and "
        "responsibility_floor: 0.05, or with fewer members.",
        {"reseed_starved": True, "responsibility_floor": 0.05},
    )


def specialised(findings: Findings) -> Advice | None:
    """Members have parted already."""
    found = findings.ambiguity
    if not findings.are_apart:
        return None
    if found is None or found.advantage is None:
        return Advice(
            "specialised",
            "Members have specialised: most units have one member that explains them. Whether it was worth it, one "
            "adapter with the same steps tells: train it with --set num_members=1 and give it as --single.",
        )
    gap = f"{abs(found.advantage.value):.3f} nats per row ({found.advantage.low:.3f} to {found.advantage.high:.3f})"
    if found.advantage.low > 0:
        return Advice(
            "specialised",
            f"Members have specialised and it pays: the mixture is {gap} better than the one adapter. Nothing to do.",
        )
    if found.advantage.high < 0:
        return Advice(
            "one_adapter",
            f"Members have specialised, but the mixture is worse than the one adapter: by {gap.replace('-', '')}. Each "
            "member saw too little: train longer, or with fewer members, or keep the one adapter.",
            {"num_members": 1},
        )
    return Advice(
        "one_adapter",
        f"Members have specialised, but the mixture is as good as the one adapter ({found.advantage.low:.3f} to "
        f"{found.advantage.high:.3f} nats per row): one adapter is enough, unless you need to know who knows what.",
        {"num_members": 1},
    )


def nothing_to_gain(findings: Findings) -> Advice | None:
    """No number of rows and no order would pay."""
    sources = findings.sources
    if not sources or sources.cheapest():
        return None
    gain = sources.mean
    return Advice(
        "one_adapter",
        f"One adapter is enough here: sources gain {gain.value:.3f} nats per row from adapters of their own "
        f"({gain.low:.3f} to {gain.high:.3f}, after {sources.steps} steps), and that pays for members of their own at "
        "no order up to 1 and with no number of rows together that was tried. If sources do contradict each other, "
        "learn for longer before you believe it (--steps).",
        {"num_members": 1},
    )


def too_few_rows(findings: Findings) -> Advice | None:
    """Units are too small to pay for routing, and larger ones would not be."""
    setting, sources = findings.setting, findings.sources
    if not sources or not setting.renyi_alpha or sources.pays(setting.renyi_alpha, setting.rows_together):
        return None
    rows = sources.fewest_rows(setting.renyi_alpha)
    if rows is None or rows < setting.rows_together:
        return None
    why = (
        f"a row gains {sources.mean.value:.3f} nats from an adapter of its own source, and "
        f"{setting.rows_together} of them routed together do not clearly pay the price of routing, up to "
        f"{price_nats(setting.renyi_alpha, setting.num_members):.2f} nats (1/alpha log K); {rows} do"
    )
    if setting.granularity == "group":
        return Advice(
            "too_few_rows", f"Too few rows in a group: {why}. Set group_rows: {rows}.", {"group_rows": rows}
        )
    other = sources.least_alpha(setting.rows_together)
    order = f" Or renyi_alpha: {other:g}." if other else ""
    return Advice(
        "too_few_rows",
        f"Units are too small: {why}. Give rows of one source a 'group', and set granularity: group and group_rows: "
        f"{rows}, or put more facts of one source into a row.{order}",
        {"granularity": "group", "group_rows": rows},
    )


def subcritical(findings: Findings) -> Advice | None:
    """The order is too small for units as they are."""
    setting, sources = findings.setting, findings.sources
    if not sources:
        return _subcritical_by_probe(findings)
    if setting.renyi_alpha and sources.pays(setting.renyi_alpha, setting.rows_together):
        return None
    order = sources.least_alpha(setting.rows_together)
    cheapest = sources.cheapest()
    assert cheapest, "the rule before says so"
    if order is None:
        order, rows = cheapest
        return Advice(
            "subcritical",
            f"renyi_alpha {setting.renyi_alpha:g} is too small and units are too small: the cheapest that pays is "
            f"renyi_alpha: {order:g} with {rows} rows of one source routed together.",
            {"renyi_alpha": order, "granularity": "group", "group_rows": rows},
        )
    return Advice(
        "subcritical",
        f"renyi_alpha {setting.renyi_alpha:g} is too small: at it members do best when they stay alike, and from "
        f"{order:g} on specialists have the lower loss. Set renyi_alpha: {order:g}.",
        {"renyi_alpha": order},
    )


def _subcritical_by_probe(findings: Findings) -> Advice | None:
    setting, stability = findings.setting, findings.stability
    if not stability or (findings.growth and findings.growth.grows):
        return None
    found = stability.critical
    if not setting.renyi_alpha < found.low:
        return None
    order = min(1.0, math.ceil(10 * min(found.high, 1)) / 10)
    if found.low > 1:
        return Advice(
            "one_adapter",
            "One adapter is stable here: along the best direction found, members would part from alpha "
            f"{found.value:.2f} on ({found.low:.2f} to {found.high:.2f}), above the 1 that there is. That is an upper "
            "bound; rows with a 'source' would tell more.",
            {"num_members": 1},
        )
    return Advice(
        "subcritical",
        f"renyi_alpha {setting.renyi_alpha:g} is below the critical alpha of about {found.value:.2f} "
        f"({found.low:.2f} to {found.high:.2f}): members stay alike. Set renyi_alpha: {order:g}.",
        {"renyi_alpha": order},
    )


def too_few_groups(findings: Findings) -> Advice | None:
    """Steps of few groups move all members the same way."""
    setting = findings.setting
    if setting.groups_per_step is None or setting.groups_per_step >= setting.num_members:
        return None
    parts = math.ceil(setting.num_members * setting.rows_together / setting.micro_batch_size)
    return Advice(
        "too_few_groups",
        f"Too few groups compete: a step has {setting.groups_per_step} for {setting.num_members} members, and moves "
        f"all members the same way. Set gradient_accumulation_steps: {parts}, so that {setting.num_members} groups of "
        f"{setting.rows_together} rows fit into a step.",
        {"gradient_accumulation_steps": parts},
    )


def growing(findings: Findings) -> Advice | None:
    """Members are parting: are there steps enough?"""
    setting, found = findings.setting, findings.growth
    left = found.steps_to_go if found else None
    if found and found.are_apart:
        return Advice(
            "growing", f"Members part within the {found.steps[-1]} steps that were looked at. Train."
        )
    if found is None or found.rate is None or not left:
        return None
    done = found.steps[-1]
    doubling = math.log(2) / found.rate.value
    pace = f"the spread of members doubles every {doubling:.0f} steps, so that they part after about {done + left}"
    if done + left > setting.total_steps:
        return Advice(
            "too_few_steps",
            f"Too few steps: {pace}, and the run has {setting.total_steps}. Set max_steps: {2 * (done + left)}, or "
            "raise learning_rate.",
            {"max_steps": 2 * (done + left)},
        )
    return Advice("growing", f"Members will specialise: {pace}, of {setting.total_steps}. Train.")


def still(findings: Findings) -> Advice | None:
    """Specialising pays, but nothing moves yet."""
    if not findings.sources:
        return None
    if findings.growth is None or findings.growth.rate is None:
        return Advice(
            "pays", "Specialising pays with these settings: sources' own adapters have the lower loss. Train."
        )
    return Advice(
        "too_few_steps",
        "Specialising pays with these settings, but in the steps that were looked at members did not part: give them "
        "more steps or a higher learning_rate, or a start that is not quite alike (b_init_std: 0.001 to 0.01).",
        {"b_init_std": 0.003},
    )


RULES: tuple[Callable[[Findings], Advice | None], ...] = (
    one_member,
    starved,
    specialised,
    nothing_to_gain,
    too_few_rows,
    subcritical,
    too_few_groups,
    growing,
    still,
)
"""In the order in which they are asked: what makes all others pointless comes first."""
