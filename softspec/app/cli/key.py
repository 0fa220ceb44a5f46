"""`softspec key`: API keys for `softspec serve --keys`."""

from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from softspec.console import tell

app = App("key", help="Make API keys for a server.", group_parameters="Options")


@app.command(
    help_epilogue="""\
Examples:
  softspec key new my-app --keys keys.yaml
  softspec key new operator --keys keys.yaml --admin"""
)
def new(
    name: Annotated[str, Parameter(name="NAME")],
    /,
    *,
    keys: Path,
    admin: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Make an API key and print it; the file keeps its hash alone.

    Args:
        name: whose key it is, as logs will call it
        keys: YAML file of keys, which is made if it is not there
        admin: let it change aliases, load ensembles and use every route there is
    """
    from softspec.server.access.new_key import new_key

    key = new_key(keys, name, admin)
    tell(f"the key '{name}' is in {keys}, where you may limit it; this is the only time it is shown")
    print(key)
