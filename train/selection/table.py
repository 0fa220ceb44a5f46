"""A selection as text: what each configuration cost and came to, and what was learned.

In: the content of `selection.json`. Out: lines for the terminal.
"""

from collections.abc import Mapping
from typing import Any

HEADINGS = (
    "members",
    "alpha",
    "adapters",
    "from",
    "adapter-steps",
    "seconds",
    "NLL",
    "MI",
    "what became of it",
)


def told(journal: Mapping[str, Any]) -> str:
    """A table of all configurations, the total, and the sentences."""
    entries = journal["configurations"].values()
    rows = [HEADINGS, *(_row(entry) for entry in entries)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADINGS))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
    cost = sum(entry["adapter_steps"] for entry in entries)
    seconds = sum(entry["seconds"] for entry in entries)
    planned = journal["plan"]["most_adapter_steps"]
    lines.append(f"together {cost} adapter-steps (at most {planned} were planned) in {seconds:.0f} seconds")
    return "\n".join([*lines, "", *(f"- {sentence}" for sentence in journal["learned"])])


def _row(entry: Mapping[str, Any]) -> tuple[str, ...]:
    """One configuration; NLL and MI are those of all its members, nats per held-out example that chose."""
    last = entry["rungs"][-1] if entry["rungs"] else {}
    start = entry["starts_from"]
    return (
        str(entry["num_members"]),
        "-" if entry["num_members"] == 1 else f"{entry['renyi_alpha']:g}",
        f"rank {entry['rank']}, {entry['layers']}",
        f"step {start['step']}" if start else "step 0",
        str(entry["adapter_steps"]),
        f"{entry['seconds']:.0f}",
        f"{last['nll']:.4f}" if "nll" in last else "-",
        f"{last['mutual_information']:.4f}" if "mutual_information" in last else "-",
        entry["verdict"],
    )
