"""What the tables of all benchmarks have in common.

In: a benchmark's document. Out: lines for the terminal.
"""

from collections.abc import Mapping
from typing import Any


def machine_line(document: Mapping[str, Any]) -> str:
    """What it was measured on."""
    machine = document["machine"]
    name, cores = machine["gpu"] or machine["cpu"], machine["logical_cores"]
    return f"{name}, {cores} cores, load {machine['load_1m']} at the start"


def told_layers(model: Mapping[str, Any]) -> str:
    """Where the adapters of a document's model are, such as `layers 20-29 of 30`."""
    layers, count = model["adapted_layers"], model["layers"]
    if len(layers) == count:
        return f"all {count} layers"
    is_range = layers[-1] - layers[0] + 1 == len(layers)
    numbers = f"{layers[0]}-{layers[-1]}" if is_range else ", ".join(map(str, layers))
    return f"layers {numbers} of {count}"


def closing_lines(document: Mapping[str, Any]) -> list[str]:
    """What a reader might miss: what was left out, and whether the run came to its end."""
    lines = []
    if document["left_out"]:
        lines += ["", "left out: " + "; ".join(document["left_out"])]
    if not document["complete"]:
        lines += ["", "not complete: it was interrupted"]
    return lines
