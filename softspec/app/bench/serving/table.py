"""The benchmark's document as a table for the terminal.

In: the document. Out: text. Measures nothing.
"""

from collections.abc import Mapping
from typing import Any

from softspec.app.bench.core.spread import shown
from softspec.app.bench.core.table import closing_lines, machine_line, told_layers
from softspec.app.bench.serving.settings import Cell


def format_report(document: Mapping[str, Any]) -> str:
    """Medians with minimum and maximum over the repeats; ratios are taken within each repeat."""
    model, engine = document["model"], document["engine"]
    lines = [
        f"{model['base']}, {model['members']} members of rank {model['rank']} in {told_layers(model)}; "
        f"vLLM {engine['vllm']}, {engine['dtype']}, compilation {engine['compilation']}, {engine['threads']} threads",
        machine_line(document),
    ]
    for cell in document["cells"]:
        title = f"{Cell(cell['concurrency'], cell['prompt_tokens'])}, median (min to max)"
        lines += ["", f"{title:45}{'first token, ms':>26}{'next tokens, ms':>26}{'tokens per s':>26}"]
        for way, measures in cell["spreads"].items():
            times = shown(measures["ttft_s"], 1e3, 1) + shown(measures["tpot_s"], 1e3, 1)
            lines.append(f"  {way:43}{times}{shown(measures['tokens_per_s'], 1, 1)}")
        for pair, measures in cell["ratios"].items():
            times = shown(measures["ttft_s"], 1, 2) + shown(measures["tpot_s"], 1, 2)
            lines.append(f"  {pair.replace('/', ' / '):43}{times}")
    return "\n".join([*lines, *closing_lines(document)])
