"""Ensembles that come and go in a running server: the bodies of the requests, and answers worded as vLLM does.

In: validated bodies and whatever loads. Out: a sentence, or one of our errors. Knows no engine and no HTTP.
"""

from pathlib import Path
from typing import Any, Protocol

from pydantic import BaseModel, ConfigDict


class LoadEnsembleRequest(BaseModel):
    """`path` is a directory on the server's machine."""

    model_config = ConfigDict(extra="forbid")

    path: str
    replace: bool = False


class UnloadEnsembleRequest(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: str


class Loader(Protocol):
    """What `softspec.engine.registry.Registry` does for us."""

    async def load(self, directory: Path, replace: bool) -> Any: ...

    async def unload(self, name: str) -> None: ...


async def load(request: LoadEnsembleRequest, loader: Loader) -> str:
    """Raises UserError when it cannot be served; nothing has changed then."""
    ensemble = await loader.load(Path(request.path), request.replace)
    return f"Success: ensemble '{ensemble.name}' added successfully."


async def unload(request: UnloadEnsembleRequest, loader: Loader) -> str:
    """Raises UnknownModelError when no ensemble has that name."""
    await loader.unload(request.name)
    return f"Success: ensemble '{request.name}' removed successfully."
