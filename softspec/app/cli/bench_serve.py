"""`softspec bench serve`: an ensemble beside the other ways to its answers."""

from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from softspec.app.bench.core.flags import SEVERAL_VALUES, LayersText, WholeNumber
from softspec.app.bench.serving.settings import WAYS, BenchSettings
from softspec.app.cli.bench import listed
from softspec.app.cli.vllm_flags import Arguments, split_arguments
from softspec.errors import ConfigError

app = App(
    "serve",
    default_parameter=SEVERAL_VALUES,
    usage="softspec bench serve [ENSEMBLE_DIR] --json FILE [OPTIONS] [VLLM OPTIONS]",
    help_epilogue=f"""\
Ways:
{listed(WAYS)}

Every other option goes to vLLM, here and in the unmodified server.

Examples:
  softspec bench serve runs/my --json bench.json --ways member ensemble
  softspec bench serve --random-adapters 8 --json bench.json --enforce-eager""",
)
DEFAULTS = BenchSettings()


@app.default
def bench_serve(
    *arguments: Arguments,
    output: Annotated[Path, Parameter(name="--json", metavar="FILE")],
    random_adapters: Annotated[WholeNumber | None, Parameter(metavar="K")] = None,
    layers: LayersText | None = None,
    members: Annotated[WholeNumber | None, Parameter(metavar="K")] = None,
    base: str | None = None,
    settings: Annotated[BenchSettings, Parameter(name="*")] = DEFAULTS,
) -> None:
    """Measure all ways in all cells and print a table.

    Args:
        arguments: an ensemble directory
        output: where the results go
        random_adapters: instead of a directory: K random adapters of rank 16, which cost what trained ones do
        layers: the decoder layers that random adapters are for, counted from 0 (default: all)
        members: use only the directory's first K members
        base: base model: directory or hub id (default: the one the ensemble names)
    """
    ensembles, vllm_args = split_arguments(arguments)
    if len(ensembles) > 1:
        raise ConfigError(
            f"found {len(ensembles)} ensemble directories: 'bench serve' measures one at a time"
        )
    from softspec.app.bench.serving.bench import bench_serve as run
    from softspec.app.bench.serving.table import format_report
    from softspec.app.cli.progress import hide_foreign_progress

    hide_foreign_progress()
    ensemble = next(iter(ensembles), None)
    print(format_report(run(ensemble, random_adapters, layers, members, base, output, settings, vllm_args)))
