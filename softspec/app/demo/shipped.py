"""The ensemble that travels in the package, trained on the demo's data: to serve and to ask before any training.

In: nothing. Out: its directory. Made by `python -m softspec.app.demo.ship`.
"""

from pathlib import Path

from softspec.artefact.manifest import MANIFEST_NAME

SHIPPED = Path(__file__).with_name("ensemble")
NAME = "demo"


def named_ensemble(directory: Path) -> Path:
    """The directory itself, but the shipped ensemble for `demo` where no ensemble is called so here."""
    is_shipped = str(directory) == NAME and not (directory / MANIFEST_NAME).is_file()
    return SHIPPED if is_shipped else directory
