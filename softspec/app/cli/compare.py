"""`softspec compare`: two models of a running server side by side."""

import json
import time
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from softspec.app.outputs import check_output
from softspec.errors import ConfigError

app = App(
    "compare",
    usage="softspec compare URL MODEL OTHER [OPTIONS]",
    help_epilogue="""\
URL is where /metrics is: the server's address, or that of its --ops-port. A key
that it wants is read from OPENAI_API_KEY. Intervals are of 95 %.

Examples:
  softspec compare http://localhost:8000 my my-v2
  softspec compare http://localhost:8000 my my-v2 --seconds 600""",
)


@app.default
def compare(
    url: Annotated[str, Parameter(name="URL")],
    model: Annotated[str, Parameter(name="MODEL")],
    other: Annotated[str, Parameter(name="OTHER")],
    /,
    *,
    seconds: float | None = None,
    output: Annotated[Path | None, Parameter(name="--json", metavar="OUT.json")] = None,
) -> None:
    """Say how two ensembles of one server differ on the requests that they got, and whether it is more than chance.

    Args:
        url: the server's address, such as http://localhost:8000
        model: the ensemble to compare with
        other: the new one, beside an alias or as a shadow
        seconds: count what comes in so many seconds (default: everything since the server started)
        output: write the comparison to this file too
    """
    if seconds is not None and not 0 < seconds < float("inf"):
        raise ConfigError(f"--seconds is {seconds:g}: expected a number greater than 0")
    check_output(output)
    from softspec.app.compare.comparison import Comparison
    from softspec.app.compare.looks import looks
    from softspec.app.running_server import ask

    found = looks(ask(url, "/metrics"), (model, other))
    if seconds is not None:
        time.sleep(seconds)
        later = looks(ask(url, "/metrics"), (model, other))
        found = [now.since(then) for now, then in zip(later, found, strict=True)]
    comparison = Comparison((model, found[0]), (other, found[1]), seconds)
    print("\n".join(comparison.lines()))
    if output is not None:
        output.write_text(json.dumps(comparison.document(), indent=2) + "\n", encoding="utf-8")
