"""`softspec demo`: the whole way on generated contradictory sources."""

import json
import sys
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

app = App(
    "demo",
    help_epilogue="""\
Examples:
  softspec demo
  softspec demo --output runs/colours --compare""",
)


@app.default
def demo(
    *,
    output: Annotated[Path, Parameter(metavar="DIR")] = Path("runs/demo"),
    base: str | None = None,
    compare: bool = False,
    overwrite: bool = False,
    as_json: Annotated[bool, Parameter(name="--json")] = False,
) -> None:
    """Train, serve, ask and measure; print each part as soon as it is known.

    An interrupted demo goes on where it was.

    Args:
        output: where the ensemble and demo.json go
        base: base model: directory or hub id (default: SmolLM2-135M-Instruct)
        compare: also train what the ensemble is compared with: one adapter, and the alpha = 0 control
        overwrite: begin anew in the folder of an earlier demo
        as_json: print demo.json to stdout, and the report to stderr
    """
    if find_spec("vllm") is None:  # said before the minutes of training, not after them
        raise ModuleNotFoundError(name="vllm")
    from softspec.app.cli.progress import hide_foreign_progress
    from softspec.app.demo.settings import DemoSettings
    from softspec.app.demo.story import print_part, run_demo

    hide_foreign_progress()
    show = partial(print, file=sys.stderr) if as_json else print_part
    results = run_demo(output, DemoSettings(base=base), compare, overwrite, show)
    if as_json:
        print(json.dumps(results, indent=2))
