"""The tables that pilots print: a line for each model, with the spread over the seeds.

In: outcomes, a dataclass of numbers for each seed. Out: Markdown on stdout.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any


def print_table(title: str, results: Mapping[str, Sequence[Any]]) -> None:
    """The mean over seeds, with the smallest and the largest."""
    columns = [field.name for field in fields(next(iter(results.values()))[0])]
    print(f"\n{title}\n| |", " | ".join(columns), "|")
    print("|---" * (1 + len(columns)), end="|\n")
    for name, outcomes in results.items():
        cells = [[getattr(outcome, column) for outcome in outcomes] for column in columns]
        shown = [f"{statistics.fmean(cell):.3f} ({min(cell):.3f} to {max(cell):.3f})" for cell in cells]
        print(f"| {name} |", " | ".join(shown), "|")
