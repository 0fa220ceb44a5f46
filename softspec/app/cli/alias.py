"""`softspec alias`: what the aliases of a running server stand for."""

from collections.abc import Mapping
from typing import Annotated

from cyclopts import App, Parameter

from softspec.errors import ConfigError

app = App(
    "alias",
    usage="softspec alias URL [NAME ENSEMBLE=WEIGHT...]",
    help_epilogue="""\
The key of a server that wants one is read from OPENAI_API_KEY; it must be an
admin's.

Examples:
  softspec alias http://localhost:8000
  softspec alias http://localhost:8000 live my=90 my-v2=10
  softspec alias http://localhost:8000 live my=100""",
)


@app.default
def alias(
    url: Annotated[str, Parameter(name="URL")],
    name: Annotated[str | None, Parameter(name="NAME")] = None,
    /,
    *weights: Annotated[str, Parameter(name="ENSEMBLE=WEIGHT")],
) -> None:
    """Show what aliases stand for, or change it from the next request on.

    Args:
        url: the server's address, such as http://localhost:8000
        name: the alias to change, or to make
        weights: all that it stands for, ensembles with weights; shares are weights over their sum
    """
    from softspec.app.running_server import ask_json
    from softspec.server.rollout.settings import read_weights

    body = None
    if name is not None:
        if not weights:
            raise ConfigError(
                f"found no weight for '{name}': expected such as 'softspec alias {url} {name} my=90'"
            )
        try:
            body = {"alias": name, "weights": read_weights(weights, "=")}
        except ValueError as error:
            raise ConfigError(str(error)) from error
    told = ask_json(url, "/v1/aliases", body)
    aliases, shadows = told["aliases"], told["shadows"]
    for each, found in aliases.items():
        print(f"{each}: {_shares(found)}")
    for each, found in shadows.items():
        print(f"{each}: the shadow of {found['of']}, asked {found['share']:.4g} of its requests")
    if not aliases:
        print(f"no alias; make one: softspec alias {url} live my=90 my-v2=10")


def _shares(weights: Mapping[str, float]) -> str:
    total = sum(weights.values())
    return ", ".join(f"{name} {weight / total:.4g}" for name, weight in weights.items())
