"""`softspec bench train`: a training step of K members beside the other ways to it."""

from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from softspec.app.bench.core.flags import SEVERAL_VALUES
from softspec.app.bench.training.settings import REGIMES, WAYS, BenchSettings
from softspec.app.cli.bench import listed

app = App(
    "train",
    default_parameter=SEVERAL_VALUES,
    help_epilogue=f"""\
Ways:
{listed(WAYS)}

Regimes:
{listed(REGIMES)}

Examples:
  softspec bench train --json bench.json
  softspec bench train --json bench.json --ways softspec trl --members 8""",
)
DEFAULTS = BenchSettings()


@app.default
def bench_train(
    *,
    output: Annotated[Path, Parameter(name="--json", metavar="FILE")],
    base: str | None = None,
    settings: Annotated[BenchSettings, Parameter(name="*")] = DEFAULTS,
) -> None:
    """Measure all ways in all cells and print a table.

    Args:
        output: where the results go
        base: directory or hub id; a directory without weights gets random ones (default: SmolLM2-135M-Instruct)
    """
    from softspec.app.bench.training.run import bench_train as run
    from softspec.app.bench.training.table import format_report
    from softspec.app.cli.progress import hide_foreign_progress

    hide_foreign_progress()
    print(format_report(run(base, output, settings)))
