"""`softspec demo`: the whole way on generated contradictory sources."""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

app = App(
    "demo",
    help_epilogue="""\
Examples:
  softspec demo
  softspec demo --output runs/colours --alpha-0""",
)


@app.default
def demo(
    *,
    output: Annotated[Path, Parameter(metavar="DIR")] = Path("runs/demo"),
    base: str | None = None,
    alpha_0: bool = False,
    as_json: Annotated[bool, Parameter(name="--json")] = False,
) -> None:
    """Train, serve and ask; print a report.

    Args:
        output: where the ensemble and demo.json go
        base: base model: directory or hub id (default: SmolLM2-135M-Instruct)
        alpha_0: also train the alpha = 0 control, for as long again
        as_json: print demo.json to stdout instead of the report
    """
    if find_spec("vllm") is None:  # said before the minutes of training, not after them
        raise ModuleNotFoundError(name="vllm")
    from softspec.app.cli.progress import hide_foreign_progress
    from softspec.app.demo.report import format_report
    from softspec.app.demo.story import DemoSettings, run_demo

    hide_foreign_progress()
    results = run_demo(output, DemoSettings(base=base, alpha_0=alpha_0))
    print(json.dumps(results, indent=2) if as_json else format_report(results))
