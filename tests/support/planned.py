"""What plans are made of in tests: two bases whose numbers are known, cases with little to say, and what was measured.

In: what differs; the benchmarks' document. Out: a `Case`; the cells of the document's tables with their cases.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from softspec.app.plan.base import Base
from softspec.app.plan.case import Case, Ensemble, Load, chosen_layers
from softspec.app.plan.device import DEVICES
from softspec.app.plan.roofline import times_of

_MEASURED = Path(__file__).parents[2] / "softspec" / "app" / "bench" / "README.md"
_SECTIONS = {
    "Adapters in the top third, two CPU cores": "top_third",
    "Adapters in all layers, two CPU cores": "all",
}
"""Sections of the benchmarks' document, and the layers with adapters."""

LLAMA_8B = Base(
    name="llama-8b",
    layers=32,
    hidden=4096,
    heads=32,
    kv_heads=8,
    head_size=128,
    intermediate=14336,
    vocabulary=128256,
    tied=False,
    longest=131072,
)
SMOLLM2 = Base(
    name="smollm2-135m",
    layers=30,
    hidden=576,
    heads=9,
    kv_heads=3,
    head_size=64,
    intermediate=1536,
    vocabulary=49152,
    tied=True,
    longest=8192,
)


def case_of(
    base: Base = LLAMA_8B,
    device: str = "h200",
    members: int = 4,
    rank: int = 16,
    layers: str = "all",
    block_size: int | None = 32,
    prompt: int = 1000,
    output: int = 500,
    users: int = 1,
    **ensemble: Any,
) -> Case:
    """By default the example of `deploy/README.md`."""
    chosen = chosen_layers(layers, base.layers)
    return Case(
        base,
        Ensemble(members, rank, chosen, block_size=block_size, **ensemble),
        Load(prompt + output, output, users),
        DEVICES[device],
    )


@dataclass(frozen=True)
class Cell:
    """Ensemble / member in a table: the time of the `next` or the `first` token."""

    case: Case
    which: str
    measured: float

    @property
    def planned(self) -> float:
        ours, theirs = times_of(self.case), times_of(self.case.alone)
        return ours.token / theirs.token if self.which == "next" else ours.first_of_all / theirs.first_of_all


def measured_cells() -> Iterator[Cell]:
    """Every such cell of the benchmarks' document."""
    document = _MEASURED.read_text(encoding="utf-8")
    for section, layers in _SECTIONS.items():
        text = document.split(f"### {section}\n")[1].split("\n### ")[0]
        for table in re.findall(r"^(\| K = .*\n(?:\|.*\n)+)", text, re.MULTILINE):
            head, _, *rows = [line.strip("| \n").split(" | ") for line in table.splitlines()]
            members = int(head[0].removeprefix("K = "))
            for name, *cells in rows:
                if found := re.fullmatch(r"(next|first) token, `ensemble` / `member`", name):
                    for column, cell in zip(head[1:], cells, strict=True):
                        yield Cell(_case_of_column(column, members, layers), found[1], float(cell.split()[0]))


def _case_of_column(column: str, members: int, layers: str) -> Case:
    """The case of a column, such as `4 users, prompt 32`; prompts have 32 tokens unless it says so, answers 16."""
    users, *prompt = (int(number) for number in re.findall(r"\d+", column))
    length = prompt[0] if prompt else 32
    return case_of(SMOLLM2, "cpu", members, layers=layers, prompt=length, output=16, users=users)
