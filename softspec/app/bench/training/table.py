"""The benchmark's document as a table for the terminal.

In: the document. Out: text. Measures nothing.
"""

from collections.abc import Mapping
from typing import Any

from softspec.app.bench.core.spread import shown
from softspec.app.bench.core.table import closing_lines, machine_line, told_layers
from softspec.app.bench.training.settings import Cell


def format_report(document: Mapping[str, Any]) -> str:
    """The table: medians with minimum and maximum over the repeats; ratios are taken within each repeat."""
    model, settings = document["model"], document["settings"]
    lines = [
        f"{model['base']} ({model['weights']} weights, {document['dtype']}), rank {settings['rank']} in "
        f"{told_layers(model)}, {settings['batch']} examples a micro-batch, alpha {settings['renyi_alpha']:g}; "
        f"{document['threads']} threads",
        machine_line(document),
    ]
    for cell in document["cells"]:
        size = Cell(cell["prompt_tokens"], cell["completion_tokens"], cell["members"], cell["regime"])
        title = f"{size}, median (min to max)"
        lines += [
            "",
            f"{title:54}{'s a step':>26}{'tokens per s':>26}{'peak GiB':>26}{'above base, GiB':>26}",
        ]
        for way, measures in cell["spreads"].items():
            columns = shown(measures["step_s"], 1, 3) + shown(measures["tokens_per_s"], 1, 0)
            lines.append(f"  {way:52}{columns}{_memory(measures, 2**-30)}")
        for pair, measures in cell["ratios"].items():
            columns = shown(measures["step_s"], 1, 2) + " " * 26
            lines.append(f"  {pair.replace('/', ' / '):52}{columns}{_memory(measures, 1)}")
        for way, samples in cell["samples"].items():
            if samples and samples[-1]["routing"]:
                facts = ", ".join(f"{name} {value:.3g}" for name, value in samples[-1]["routing"].items())
                lines.append(f"  {way}: {facts}")
        differences = (f"{pair} {value:.1e}" for pair, value in cell["gradient_differences"].items())
        lines.append(f"  gradients differ by: {', '.join(differences) or 'not compared'}")
    return "\n".join([*lines, *closing_lines(document)])


def _memory(measures: Mapping[str, Any], factor: float) -> str:
    return shown(measures["peak_bytes"], factor, 2) + shown(measures["added_bytes"], factor, 2)
