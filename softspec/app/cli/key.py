"""`softspec key`: API keys for `softspec serve --keys`."""

from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from softspec.console import tell

app = App("key", help="Make API keys for a server.", group_parameters="Options")


@app.command(
    help_epilogue="""\
Example:
  softspec key new my-app --keys keys.yaml"""
)
def new(
    name: Annotated[str, Parameter(name="NAME")],
    /,
    *,
    keys: Path,
) -> None:
    """Make an API key and print it; the file keeps its hash alone.

    Args:
        name: whose key it is, as logs will call it
        keys: YAML file of keys, which is made if it is not there
    """
    from softspec.server.access.new_key import new_key

    key = new_key(keys, name)
    tell(f"the key '{name}' is in {keys}, where you may limit it; this is the only time it is shown")
    print(key)
