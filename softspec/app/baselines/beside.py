"""Packages that lie beside the environment, in `baselines`: laplace-torch and lm-polygraph ask for what ours forbids.

In: a module's name. Out: the module; what the environment has wins. Knows nothing of what they compute.
"""

import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

from softspec.errors import ConfigError

FOLDER = Path(sys.prefix) / "baselines"
BARE = ("lm_polygraph", "lm_polygraph.utils", "lm_polygraph.estimators")
"""Packages whose own `__init__` is not run: it would import spaCy, sentence-transformers and more, 230 MB that the
estimators used here need nothing of."""


def beside(name: str) -> ModuleType:
    """Import a module from beside the environment.

    Raises:
        ConfigError: it is not there, or lacks something.
    """
    if str(FOLDER) not in sys.path:
        sys.path.append(str(FOLDER))
    try:
        for package in BARE if name.startswith(f"{BARE[0]}.") else ():
            _without_init(package)
        return import_module(name)
    except ModuleNotFoundError as missing:
        raise ConfigError(
            f"{name.partition('.')[0]} is not installed ({missing.name}): run 'make baselines', or "
            f"pip install --no-deps --target {FOLDER} -r requirements/baselines.txt"
        ) from missing


def _without_init(package: str) -> None:
    """Make the modules of a package importable without running its `__init__`."""
    if package in sys.modules:
        return
    spec = find_spec(package)
    if spec is None or spec.submodule_search_locations is None:
        raise ModuleNotFoundError(name=package)
    module = ModuleType(package)
    module.__path__ = list(spec.submodule_search_locations)
    sys.modules[package] = module
