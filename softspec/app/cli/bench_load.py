"""`softspec bench load`: a running server under load."""

import json
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from softspec.app.bench.load.settings import LoadSettings
from softspec.app.outputs import check_output

app = App(
    "load",
    usage="softspec bench load URL [OPTIONS]",
    help_epilogue="""\
Requests are sent and timed by the client of 'vllm bench serve'. A key is read
from OPENAI_API_KEY.

Examples:
  softspec bench load http://localhost:8000 --concurrency 16 --requests 200
  softspec bench load http://localhost:8000 --rate 2 --duration 60 --json f.json""",
)
DEFAULTS = LoadSettings()


@app.default
def bench_load(
    url: Annotated[str, Parameter(name="URL")],
    /,
    *,
    model: str | None = None,
    settings: Annotated[LoadSettings, Parameter(name="*")] = DEFAULTS,
    output: Annotated[Path | None, Parameter(name="--json", metavar="FILE")] = None,
) -> None:
    """Ask a running server, and print its times, failures and decisions.

    Args:
        url: of the server, such as http://localhost:8000
        model: whom to ask (default: the first that the server lists)
        output: where the results go
    """
    from softspec.app.bench.load.run import bench_load as run
    from softspec.app.bench.load.table import format_load

    check_output(output)
    document = run(url, model, settings)
    if output is not None:
        output.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    print(format_load(document))
